"""Starting a job's roles and watching them: ``agent.py`` for one host, ``cluster.py`` for who is where."""
