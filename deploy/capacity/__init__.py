"""Plan the memory and the network traffic of a job before it runs."""
