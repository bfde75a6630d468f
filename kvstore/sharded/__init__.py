"""Tables whose rows are divided among the ranks that train."""
