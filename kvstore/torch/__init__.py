"""Tables in the memory of a GPU, updated with PyTorch."""
