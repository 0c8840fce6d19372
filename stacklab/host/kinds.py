"""The kinds of nodes: which of them this machine runs best, and how long each takes."""

from pathlib import Path

from stacklab.host import kvm

KINDS = ("lxc", "vm")
# How many times longer everything takes on a node that is emulated than on one that runs natively. It is the
# one place for it: every wait for a node is as much longer, on the machine and on the node.
EMULATED = 8.0


def best(cache: Path) -> str:
    """The kind that `auto` takes: machines of their own where KVM is proved to work, else containers."""
    return "vm" if kvm.proved(cache) else "lxc"


def patience(kind: str, cache: Path) -> float:
    """How many times longer than on a node that runs natively all is waited for."""
    return EMULATED if kvm.is_emulated() or (kind == "vm" and not kvm.works(cache)) else 1.0
