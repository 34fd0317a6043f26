"""Image files: which there are below folders and in lists, and what was passed over."""
