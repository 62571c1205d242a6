"""Data sets: where they are, how they are read, and batches of them."""
