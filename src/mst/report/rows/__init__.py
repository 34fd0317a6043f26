"""What single rows of results say beyond their numbers: how sure they are."""
