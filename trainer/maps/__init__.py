"""Maps of embeddings: a projection to two dimensions, as a page."""
