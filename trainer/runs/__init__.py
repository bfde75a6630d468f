"""Runs: their folders, events, the ownership of checkpoints, and the rows that a job selects."""
