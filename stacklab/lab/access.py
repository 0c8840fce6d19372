"""Reaching the nodes of a lab: its SSH key, the host keys of its nodes, and what makes a node its own."""

import secrets
import shlex
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from stacklab.errors import Interrupted, StepFailed
from stacklab.files import reach_disk, write_atomically
from stacklab.model.topology import SSH_PORT
from stacklab.provide.provider import Node, NodeFile

if TYPE_CHECKING:
    from stacklab.lab.lab import Lab

BOOT_SECONDS = 120.0
CONNECT_SECONDS = 30
POLL_SECONDS = 0.05
# systemd's own 90 s for the start or end of a service are those of a machine that is not emulated.
SYSTEM = "[Manager]\nDefaultTimeoutStartSec={seconds:.0f}\nDefaultTimeoutStopSec={seconds:.0f}\n"
SYSTEM_SECONDS = 90
# Without PAM a login makes no session of systemd, which costs more than the command that it is for.
SSHD = "PasswordAuthentication no\nUseDNS no\nUsePAM no\n"


def connect_seconds(lab: "Lab") -> int:
    """How long a node's SSH server may take to greet: it does so while all else on the node starts."""
    return round(CONNECT_SECONDS * lab.patience)


def ssh_options(lab: "Lab") -> list[str]:
    """The options of ssh(1) for the nodes of a lab: only host keys that it made, or that the user accepted.

    Of nodes that it made also the key that opens them.
    """
    folder = lab.folder / "ssh"
    own = [] if lab.has_hosts else [f"-oIdentityFile={folder / 'key'}", "-oIdentitiesOnly=yes"]
    return [
        "-F/dev/null",
        *own,
        f"-oConnectTimeout={connect_seconds(lab)}",
        "-oServerAliveInterval=15",
        f"-oUserKnownHostsFile={folder / 'known_hosts'}",
        "-oStrictHostKeyChecking=yes",
        "-oBatchMode=yes",
        "-oLogLevel=ERROR",
    ]


def ssh_options_of(node: Node) -> list[str]:
    """The options of ssh(1) that one node has more than the others: none, unless it is a host."""
    key = [f"-oIdentityFile={node.key}", "-oIdentitiesOnly=yes"] if node.key else []
    port = [f"-p{node.port}"] if node.port != SSH_PORT else []
    return [*key, *port]


def as_root(node: Node, command: str) -> str:
    """The shell text that runs a shell text as root on the node."""
    return command if node.user == "root" else f"sudo -n sh -c {shlex.quote(command)}"


def ensure_keys(lab: "Lab", nodes: tuple[Node, ...]) -> None:
    """Make the lab's key pair and a host key for each node, where they are not there yet."""
    folder = lab.folder / "ssh"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in ("key", *(f"host-{node.name}" for node in nodes)):
        pair = (folder / name, folder / f"{name}.pub")
        if not all(half.exists() and half.stat().st_size for half in pair):  # a power cut leaves empty ones
            for half in pair:
                half.unlink(missing_ok=True)
            argv = [
                "ssh-keygen",
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-C",
                f"stacklab {lab.name}",
                "-f",
                str(folder / name),
            ]
            subprocess.run(argv, check=True)
            reach_disk(pair)
    known = [f"{node.address} {_public(folder / f'host-{node.name}')}\n" for node in nodes]
    write_atomically(folder / "known_hosts", "".join(known), mode=0o600)


def identity_files(lab: "Lab", node: Node) -> dict[str, NodeFile]:
    """What makes a copy of the base image this node of this lab."""
    folder = lab.folder / "ssh"
    hosts = "".join(f"{other.address} {other.name}\n" for other in lab.settings.nodes)
    return {
        "/etc/hostname": NodeFile(f"{node.name}\n"),
        "/etc/hosts": NodeFile(f"127.0.0.1 localhost\n::1 localhost\n{hosts}"),
        "/etc/machine-id": NodeFile(f"{secrets.token_hex(16)}\n", 0o444),
        "/etc/ssh/ssh_host_ed25519_key": NodeFile((folder / f"host-{node.name}").read_text(), 0o600),
        "/etc/ssh/ssh_host_ed25519_key.pub": NodeFile((folder / f"host-{node.name}.pub").read_text()),
        "/etc/ssh/sshd_config.d/stacklab.conf": NodeFile(SSHD),
        "/etc/systemd/system.conf.d/stacklab.conf": NodeFile(
            SYSTEM.format(seconds=SYSTEM_SECONDS * lab.patience)
        ),
        "/root/.ssh/authorized_keys": NodeFile((folder / "key.pub").read_text(), 0o600),
    }


def wait_for_ssh(lab: "Lab", node: Node) -> None:
    """Wait until the node's SSH server greets.

    Raises StepFailed after 120 s, or more where the node is emulated, Interrupted when the command is.
    """
    seconds = BOOT_SECONDS * lab.patience
    deadline = time.monotonic() + seconds
    with lab.namespace.network():
        while not _greets(lab, node):
            if lab.stopping.is_set():
                raise Interrupted(f"node '{node.name}' was not waited for")
            if time.monotonic() > deadline:
                raise StepFailed(
                    f"node '{node.name}' does not answer SSH after {seconds:.0f} s",
                    hint=f"stacklab doctor, and the node's console: find {lab.folder} -name '*.log'",
                )
            time.sleep(POLL_SECONDS)


def set_clock(lab: "Lab", node: Node) -> None:
    """Tell a node that has slept what time it is. Raises StepFailed when it does not take it."""
    # The time is told when the node waits for it: on an emulated one, SSH has taken seconds until then.
    command = lab.ssh_command(node.name, ["sh", "-c", 'echo ready; read now; date --utc --set "@$now"'])
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        _, said = process.communicate(f"{time.time():.3f}\n")
    if process.returncode != 0:
        raise StepFailed(f"node '{node.name}' does not take the time", detail=said.strip())


def _greets(lab: "Lab", node: Node) -> bool:
    """Whether the SSH server takes a connection and greets, in as long as ssh(1) would wait for it.

    Who asks again sooner only has it start more sessions, each of which takes longer.
    """
    deadline = time.monotonic() + connect_seconds(lab)
    try:
        with socket.create_connection((node.address, node.port), timeout=1.0) as connection:
            connection.settimeout(POLL_SECONDS)
            while not lab.stopping.is_set() and time.monotonic() < deadline:
                with suppress(TimeoutError):
                    return connection.recv(4) == b"SSH-"
    except OSError:
        pass
    return False


def _public(key: Path) -> str:
    return " ".join(key.with_suffix(".pub").read_text().split()[:2])
