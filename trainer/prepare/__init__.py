"""From raw events to shards and vocabularies: ``pipeline.py`` is the way; ``check.py`` and ``forget.py`` come after."""
