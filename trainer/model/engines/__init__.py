"""Gradient engines: closed form on the CPU, or MXNet's autograd, behind one interface."""
