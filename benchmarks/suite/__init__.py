"""The parts of the benchmark suite, ``make bench``: its work, its measurements, and its page."""
