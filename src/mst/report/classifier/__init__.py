"""What a page says of classifiers: where they go wrong, and whether trained weights helped."""
