"""Engines: who computes the gradients of a batch. ``base.py`` has the protocol, ``cpu.py`` the reference."""
