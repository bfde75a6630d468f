"""Run one job: in this process, on a cluster that it coordinates, or in a child process."""
