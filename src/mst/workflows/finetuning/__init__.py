"""Fine-tuning from its first check to its result."""
