"""Prepare datasets from raw events (``pipeline.py``), validate them (``validate.py``), forget ids (``forget.py``)."""
