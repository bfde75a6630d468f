"""Run jobs on hosts, and watch them.

Roles and their restarts are in ``cluster/``, AWS in ``aws/``, plans of memory in ``capacity/``, the dashboard in
``dashboard/`` and the search for hyperparameters in ``tuning/``. Read ``cluster/coordinator.py`` first (which processes
run where), then ``cluster/agent.py`` (which starts them).
"""
