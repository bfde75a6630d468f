"""One small script per peer, each run in an environment of its own, made of the requirements beside it."""
