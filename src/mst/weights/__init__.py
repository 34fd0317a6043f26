"""Weights as files hold them: what is an ordinary tensor, and how to read files of other people safely."""
