"""One script per peer, run in a virtual environment that is installed from the requirements file next to it."""
