"""A step of a training again, from its folder to what went wrong; nothing in the folder changes."""
