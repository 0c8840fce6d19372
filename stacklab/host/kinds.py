"""The kinds of nodes: which of them this machine runs best, and how long each takes."""

from pathlib import Path

from stacklab.host import kvm
from stacklab.host.emulation import EMULATED, is_emulated

KINDS = ("lxc", "vm")


def best(cache: Path) -> str:
    """The kind that `auto` takes: machines of their own where KVM is proved to work, else containers.

    On a machine that is itself emulated all is slow enough without one more machine in between.
    """
    return "vm" if not is_emulated() and kvm.proved(cache) else "lxc"


def patience(kind: str, cache: Path) -> float:
    """How many times longer than on a node that runs natively all is waited for."""
    return EMULATED if is_emulated() or (kind == "vm" and not kvm.works(cache)) else 1.0
