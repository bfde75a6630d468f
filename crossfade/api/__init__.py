"""The Python API: train on data frames, and use trained models, without the command line."""
