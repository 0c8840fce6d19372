"""Whether KVM works here: proved by booting a kernel with it, as /dev/kvm alone proves nothing.

There are machines on which the device opens, firmware runs, and an ordinary kernel never gets through its
decompressor (`KVM internal error. Suberror: 1`, and QEMU stays there, paused). The verdict is kept in the
cache until the host's kernel or QEMU changes.
"""

import json
import os
import shutil
import subprocess
import threading
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from stacklab.children import BOUND
from stacklab.files import write_atomically

DEVICE = Path("/dev/kvm")
QEMU = "qemu-system-x86_64"
SECONDS = 10.0
# Without a disk a kernel gets through all of its own start, and says one of these at its end.
BROKEN = b"KVM internal error"
EMULATED = "QEMU TCG CPU"
REACHED = (b"Unable to mount root fs", b"Run /init as init process")


@dataclass(frozen=True)
class Proof:
    """The verdict, and in a few words why."""

    works: bool
    why: str

    def __str__(self) -> str:
        return f"{'yes' if self.works else 'no'}: {self.why}"


def known(cache: Path, device: Path = DEVICE) -> Proof | None:
    """The verdict without booting anything; None where it takes a kernel to tell."""
    if not device.exists():
        return Proof(False, f"there is no {device}")
    if is_emulated():  # docs/decisions/0025-an-emulated-node-has-one-processor.md
        return Proof(False, "the processor is emulated, and what emulates its KVM fails at times")
    try:
        record = json.loads((cache / "kvm.json").read_text())
        return Proof(record["works"], record["why"]) if record["key"] == _key() else None
    except (OSError, ValueError, KeyError):
        return None


def is_emulated(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this machine is itself emulated by QEMU: its processor says so in its name."""
    return EMULATED in cpuinfo.read_text()


def works(cache: Path) -> bool:
    """Whether KVM was proved to work, without booting anything."""
    proof = known(cache)
    return proof is not None and proof.works


def proved(cache: Path) -> bool:
    """Whether KVM works; where that is open it is tried with a kernel that lies at hand, if one does."""
    kernel = kernel_at_hand(cache)
    if known(cache) is None and kernel is not None and os.geteuid() == 0:
        return prove(cache, kernel).works
    return works(cache)


def is_nested() -> bool:
    """Whether a virtual machine on this machine can run others with KVM."""
    files = Path("/sys/module").glob("kvm_*/parameters/nested")
    return any(file.read_text().strip() in ("Y", "1") for file in files)


def kernel_at_hand(cache: Path) -> Path | None:
    """The kernel of the newest guest that was built, or else this machine's own."""
    guests = sorted((cache / "images").glob("guest-*/guest.vmlinuz"), key=lambda file: file.stat().st_mtime)
    own = Path(f"/boot/vmlinuz-{os.uname().release}")
    return guests[-1] if guests else own if own.is_file() else None


def prove(cache: Path, kernel: Path, *, again: bool = False, seconds: float = SECONDS) -> Proof:
    """Boot `kernel` (a bzImage) under KVM, unless the verdict is known, and keep the verdict in `cache`.

    Takes about a second, and `seconds` where it hangs. again: boot even so.
    """
    proof = known(cache)
    if proof and (is_emulated() or not DEVICE.exists()):
        return proof
    if proof is None or again:
        proof = boot(kernel, seconds=seconds)
        write_atomically(cache / "kvm.json", json.dumps({"key": _key(), **asdict(proof)}))
    return proof


def command(kernel: Path, accelerator: str, program: str = QEMU) -> list[str]:
    """The command line that boots a kernel without a disk, its console on standard output."""
    return [
        *(program, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
        *("-machine", f"pc,accel={accelerator}", "-m", "256", "-kernel", str(kernel)),
        *("-append", "console=ttyS0 panic=-1"),
        *(("-cpu", "host") if accelerator == "kvm" else ()),
    ]


def boot(kernel: Path, *, accelerator: str = "kvm", seconds: float = SECONDS, program: str = QEMU) -> Proof:
    """Boot a kernel without a disk, and see whether it says within `seconds` that it has started.

    accelerator: `tcg` boots it emulated, to tell a bad kernel from a bad KVM.
    """
    if shutil.which(program) is None:
        return Proof(False, f"{program} is not installed")
    qemu = subprocess.Popen(
        [*BOUND, *command(kernel, accelerator, program)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert qemu.stdout is not None
    # Ends the reading below as well: a hung guest writes nothing more, and its pipe stays open until it dies.
    clock = threading.Timer(seconds, qemu.kill)
    clock.start()
    printed = b""
    try:
        for line in qemu.stdout:
            printed += line
            if any(word in line for word in REACHED):
                return Proof(True, "a kernel booted")
            if BROKEN in line:
                return Proof(False, f"a kernel did not boot: {line.decode(errors='replace').strip()}")
    finally:
        clock.cancel()
        qemu.kill()
        qemu.wait()
        qemu.stdout.close()
    last = printed.decode(errors="replace").strip().splitlines()[-1:]
    said = f"after saying: {last[0][:100]}" if last else "without a word"
    return Proof(False, f"a kernel did not boot within {seconds:g} s and ended {said}")


@cache
def _key() -> str:
    """What the verdict depends on: the host's kernel, and the QEMU installed."""
    done = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=False)
    return f"{os.uname().release} {done.stdout.splitlines()[0] if done.stdout else ''}"
