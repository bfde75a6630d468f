"""Embeddings as Parquet: written by a run, staged on shared storage, or exported from a checkpoint."""
