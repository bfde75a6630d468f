"""The command line of Crossfade: parses arguments, calls the packages below and reports results."""
