"""Data sets: finding them, reading them, and batches of their examples."""
