"""Evaluation: ranking quality, label precision and nearest neighbors."""
