"""Evaluation: ranking quality, baselines, and re-ranking."""
