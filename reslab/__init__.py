"""reslab: the laboratory for the depth axis of neural networks."""

__version__ = "0.1.0"
