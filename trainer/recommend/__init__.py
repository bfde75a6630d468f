"""Recommendations and similar items from the embeddings of a run or the newest complete checkpoint."""
