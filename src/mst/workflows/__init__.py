"""Where the stages meet: what a command or a Python user calls, from a whole pre-training to one evaluation."""
