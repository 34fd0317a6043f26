"""Networks in classes of transformers' own."""
