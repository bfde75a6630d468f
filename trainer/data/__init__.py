"""The way from shards to batches: ``shards.py`` reads what ``trainer.prepare`` wrote, in an order that a seed fixes."""
