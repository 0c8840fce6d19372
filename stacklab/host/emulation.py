"""Processors that QEMU emulates: how much slower they are, and whether this machine has one."""

import re
from pathlib import Path

# How many times longer everything takes on a node that is emulated than on one that runs natively. It is the
# one place for it: every wait for a node is as much longer, on the machine and on the node.
EMULATED = 8.0


def is_emulated(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this machine is itself emulated by QEMU: its processor says so in its name."""
    return re.search(r"^model name\s*: QEMU TCG CPU", cpuinfo.read_text(), re.MULTILINE) is not None
