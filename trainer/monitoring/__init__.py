"""Metrics of a process: names, collectors, the HTTP endpoint, and the last values of a run."""
