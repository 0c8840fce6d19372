"""stacklab builds real OpenStack clouds for a lab, one layer at a time."""

__version__ = "0.1.0"
