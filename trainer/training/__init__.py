"""Training: the loop, the session around it, checkpoints and metrics."""
