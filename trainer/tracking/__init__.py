"""Experiment tracking: pass the events of a run on to MLflow and TensorBoard without delaying its steps."""
