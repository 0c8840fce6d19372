"""A lab: its folder, its namespaces, its secrets and its records."""

from stacklab.lab.lab import Lab
from stacklab.lab.settings import LabSettings

__all__ = ["Lab", "LabSettings"]
