"""The dataset: its files, the order in which workers read them, and what reading needs."""
