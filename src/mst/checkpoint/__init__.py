"""Complete, atomic, strict checkpoints and the exported backbone file."""
