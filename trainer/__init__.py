"""Train embeddings from interactions: preparation, training, evaluation and export.

Read ``training/loop.py`` first (the algorithm, on one screen), then ``config/schema.py`` (the job file),
``data/schedule.py`` (the order in which interactions are read), ``model/negatives.py``, ``model/losses.py`` and
``model/engines/cpu.py``.
"""
