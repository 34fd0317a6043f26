"""One module per command: the only place where stages are wired together."""
