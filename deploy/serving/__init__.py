"""Serve a trained model over HTTP."""
