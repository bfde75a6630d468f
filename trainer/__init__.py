"""Training embeddings from interactions.

Read ``loop.py`` first (the algorithm, on one screen), then ``job.py`` (the job file), ``data/shards.py`` (the order in
which interactions are read), ``negatives.py``, ``losses.py`` and ``engines/cpu.py``.
"""
