"""Maps of embeddings: a projection to two dimensions, as a picture and as a page."""
