"""Classification of frozen features: nearest neighbours, linear probe, logistic regression; retrieval."""
