"""The loop: schedules, optimizer, state, step, monitors."""
