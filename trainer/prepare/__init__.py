"""Prepare datasets from raw events (``pipeline.py``), validate them (``validate.py``), forget IDs (``forget.py``)."""
