"""Experiment tracking: pass the events of a run on to MLflow without delaying its steps."""
