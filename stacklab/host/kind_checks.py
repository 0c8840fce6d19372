"""Which kinds of nodes this machine runs, how fast each is to be expected, and why."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from stacklab.host import kinds, kvm
from stacklab.host.checks import Finding, State

# What nodes of each kind cannot do without, by the names of the checks.
LXC_NEEDS = frozenset(
    {"root", "programs", "libvirt", "namespaces", "control groups", "overlay", "network devices"}
)
DISKS = "fuse and loop"
VM_NEEDS = LXC_NEEDS | {"tun", DISKS}


def kind_findings(judged: Sequence[Finding], cache: Path) -> list[Finding]:
    """A finding for each kind that is made here, from those of all other checks."""
    lacking = {
        finding.name
        for finding in judged
        if finding.state is State.FAILED or (finding.name == DISKS and finding.state is State.WARNING)
    }
    best = kinds.best(cache)
    return [
        _kind("lxc", lacking & LXC_NEEDS, "containers, at this machine's own speed", best),
        _kind("vm", lacking & VM_NEEDS, _vm_words(cache), best),
    ]


def _kind(kind: str, lacking: Iterable[str], words: str, best: str) -> Finding:
    name = f"nodes: {kind}"
    if missing := ", ".join(sorted(lacking)):
        return Finding(name, State.WARNING, f"not here: {missing}", f"see what is said of: {missing}")
    return Finding(name, State.OK, words + (" (`auto` takes these)" if kind == best else ""))


def _vm_words(cache: Path) -> str:
    if not kvm.works(cache):
        return "virtual machines, emulated as no KVM works here: everything takes 10 to 20 times as long"
    inside = "instances in them, too" if kvm.is_nested() else "instances in them are emulated"
    return f"virtual machines with KVM, nearly at this machine's own speed; {inside}"
