"""Plan the memory of a job before it runs."""
