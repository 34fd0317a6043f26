"""What every evaluation shares: features, numbers, protocols, image sets, the pyramid, which way up annotations are."""
