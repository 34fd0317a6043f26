"""A self-contained page from result files only."""
