"""A lab: its folder, its namespaces, its secrets and its records."""

from stacklab.lab.lab import Lab, LabSettings

__all__ = ["Lab", "LabSettings"]
