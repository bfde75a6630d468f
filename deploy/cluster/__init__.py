"""Run a job's roles on one or more hosts: agents, their coordinator, restarts and supervision."""
