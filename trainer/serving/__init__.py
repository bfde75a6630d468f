"""What an HTTP server needs to answer with a trained model: versions of it, laid out for random access."""
