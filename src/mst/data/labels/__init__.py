"""Labels as people have them: class folders with or without a split, tables; each gives source, labels and split."""
