"""Job configuration: the schema of a job file, loading it, and explaining its keys."""
