"""Tells lung nodules from look-alikes in chest CT. For research, not for diagnosis."""

__version__ = "0.1.0"
