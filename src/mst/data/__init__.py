"""Images from disk, one at a time, in an order that is a function of (seed, epoch, position)."""
