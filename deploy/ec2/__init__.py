"""A cluster on EC2 for one run: planned, started, followed and taken down, and what runs on its hosts."""
