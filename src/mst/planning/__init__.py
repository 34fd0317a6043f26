"""What can be known before a run: checks, memory and time estimates, speed; and the stream of its views."""
