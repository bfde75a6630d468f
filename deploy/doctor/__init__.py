"""Examine a host, and a job on it, for what would keep training from working; see ``examine.py``."""
