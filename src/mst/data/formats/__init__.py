"""Layouts of image files beyond what one decoder reads: TIFF by its tags, arrays, large PNGs."""
