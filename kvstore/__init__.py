"""Row stores: embedding tables that are pulled and pushed by row, in this process or on MXNet servers.

Read ``store.py`` first (the protocol), then ``local.py`` (the shortest implementation), ``optimizers.py`` (what a push
does to a row) and ``layout.py`` (where a row lies on the servers).
"""

__version__ = "0.1.0"
