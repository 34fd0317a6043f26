"""The one training engine: a task goes in; steps, rows, evaluations and checkpoints come out, whatever ends it."""
