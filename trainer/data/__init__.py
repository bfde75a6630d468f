"""From raw events to batches: ``prepare.py`` writes shards and vocabularies, ``shards.py`` reads them back in order."""
