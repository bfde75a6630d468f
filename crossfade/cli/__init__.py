"""Commands of ``crossfade``, one module each, whose ``run`` is a ``Command``."""
