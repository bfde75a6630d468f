"""Train embeddings from interactions: preparation, training, evaluation and export.

Read ``training/steps.py`` first (``PullPushStep.take``: the algorithm in a dozen lines) and ``training/loop.py`` (all
steps of a run), then ``config/schema.py`` (the job file), ``data/schedule.py`` (the order in which interactions are
read), ``model/negatives.py``, ``model/losses.py`` and ``model/engines/cpu.py``.
"""
