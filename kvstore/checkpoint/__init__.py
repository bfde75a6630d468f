"""Checkpoints: their format, and how they are written, read, committed and pruned."""
