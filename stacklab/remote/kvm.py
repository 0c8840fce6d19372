"""Whether KVM works on a host: proved by booting a kernel there, as on this machine (stacklab.host.kvm)."""

import shlex
import subprocess
from pathlib import Path

from stacklab.host.kvm import EMULATED, QEMU, REACHED, SECONDS, command
from stacklab.lab.lab import Lab
from stacklab.provide.provider import Node

KERNEL = "/var/lib/stacklab/kernel"


def works(lab: Lab, node: Node, kernel: Path) -> bool:
    """Boot `kernel`, a bzImage, under KVM on the host; where that does not work, instances are emulated.

    On a host that is itself emulated KVM is not used, as on this machine (docs/decisions/0025).
    """
    with lab.journal.step("kvm", node.name):
        with kernel.open("rb") as stream:
            argv = lab.ssh_command(node.name, [f"cat > {KERNEL}"])
            subprocess.run(argv, stdin=stream, capture_output=True, check=False)
        words = "|".join(word.decode() for word in REACHED)
        qemu = shlex.join(command(Path(KERNEL), "kvm", QEMU))
        boots = f"timeout {SECONDS:g} {qemu} < /dev/null 2>&1 | grep -q -m 1 -E {shlex.quote(words)}"
        text = f"! grep -q {shlex.quote(EMULATED)} /proc/cpuinfo && {boots} && rm -f {KERNEL}"
        return lab.run_on(node.name, [text]).returncode == 0
