"""Row stores and optimizers in PyTorch, for tables in the memory of a GPU."""
