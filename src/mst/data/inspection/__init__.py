"""What a set of images holds: facts of each image, duplicates, classes and parts, advice."""
