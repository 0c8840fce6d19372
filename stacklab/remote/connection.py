"""A connection to a host over SSH, before the lab is made: who the host is, and who we are to it.

Only host keys count that the user has accepted: those that the lab keeps, and those in the user's own
known_hosts files. Later commands go through ssh(1) and Ansible, which know the lab's file alone.
"""

import base64
import contextlib
import hashlib
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import paramiko

from stacklab.files import write_atomically
from stacklab.provide.provider import Node

CONNECT_SECONDS = 10.0
LOGIN_SECONDS = 20.0
USER_FILES = ("~/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts")


class Unreached(Exception):
    """The host cannot be talked to; the text says why. advice: what to do about it."""

    def __init__(self, why: str, advice: str) -> None:
        super().__init__(why)
        self.advice = advice


@dataclass(frozen=True)
class HostKey:
    """A key that a host has shown. algorithm: as in known_hosts; blob: base64, as there."""

    node: Node
    algorithm: str
    blob: str

    @property
    def fingerprint(self) -> str:
        """As ssh(1) and `ssh-keygen -l` show it."""
        digest = hashlib.sha256(base64.b64decode(self.blob)).digest()
        return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"

    @property
    def line(self) -> str:
        """The key as a line of known_hosts."""
        return f"{known_name(self.node)} {self.algorithm} {self.blob}\n"


class UnknownKey(Exception):
    """The host has shown a key that nobody has accepted yet."""

    def __init__(self, key: HostKey) -> None:
        super().__init__(key.fingerprint)
        self.key = key


def known_name(node: Node) -> str:
    """What a host is called in known_hosts."""
    return node.address if node.port == 22 else f"[{node.address}]:{node.port}"


class KnownHosts:
    """The host keys of a lab of hosts, in a file that ssh(1) reads, too.

    others: files of keys that the user has accepted before; what they know of a host becomes the lab's.
    """

    def __init__(self, file: Path, others: Sequence[str | Path] = USER_FILES) -> None:
        self._file = file
        self._others = [Path(other).expanduser() for other in others]
        self._accepted: dict[str, Sequence[HostKey]] = {}

    def of(self, node: Node) -> list[HostKey]:
        """The keys that are known of a host."""
        name = known_name(node)
        if name in self._accepted:
            return list(self._accepted[name])
        for file in (self._file, *self._others):
            keys = paramiko.HostKeys()
            with contextlib.suppress(OSError):
                keys.load(str(file))
            found = keys.lookup(name)
            if found:
                return [HostKey(node, kind, key.get_base64()) for kind, key in found.items()]
        return []

    def accept(self, keys: Sequence[HostKey]) -> None:
        """Take keys for those of their hosts, and write nothing yet."""
        for key in keys:
            name = known_name(key.node)
            self._accepted[name] = [*self._accepted.get(name, ()), key]

    def save(self, nodes: Iterable[Node]) -> None:
        """Write down all that is known of hosts as the lab's; other keys of theirs stay."""
        before = self._file.read_text() if self._file.exists() else ""
        added = [key.line for node in nodes for key in self.of(node) if key.line not in before]
        if added:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(self._file, before + "".join(added), mode=0o600)


class _Refuse(paramiko.MissingHostKeyPolicy):
    def __init__(self, node: Node) -> None:
        self._node = node

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        raise UnknownKey(HostKey(self._node, key.get_name(), key.get_base64()))


@contextlib.contextmanager
def connected(node: Node, known: KnownHosts) -> Iterator[paramiko.SSHClient]:
    """A connection to a host, logged in.

    Raises UnknownKey for a host whose key nobody has accepted, Unreached for all else that is in the way.
    """
    keys = known.of(node)
    with contextlib.closing(paramiko.SSHClient()) as client:
        client.set_missing_host_key_policy(_Refuse(node))
        for key in keys:
            entry = paramiko.hostkeys.HostKeyEntry.from_line(key.line)
            if entry is not None and entry.key is not None:
                client.get_host_keys().add(known_name(node), key.algorithm, entry.key)
        _log_in(client, node)
        yield client


def run(client: paramiko.SSHClient, command: str, stdin: str, seconds: float) -> tuple[int, str, str]:
    """Run a command with `stdin`; its exit code, and what it printed on both streams.

    Raises Unreached when it has not ended after `seconds`, or the connection broke.
    """
    try:
        source, output, errors = client.exec_command(command, timeout=seconds)
        source.write(stdin)
        source.channel.shutdown_write()
        text = output.read().decode(errors="replace")
        return output.channel.recv_exit_status(), text, errors.read().decode(errors="replace")
    except (OSError, paramiko.SSHException) as error:
        why = "no answer" if isinstance(error, TimeoutError) else str(error)
        raise Unreached(f"the connection broke: {why}", "look at its load and its network") from error


def _log_in(client: paramiko.SSHClient, node: Node) -> None:
    key = node.key or None
    if key and not Path(key).is_file():
        raise Unreached(f"there is no key file {key}", "name the right one in the topology: `key: FILE`")
    try:
        client.connect(
            node.address,
            port=node.port,
            username=node.user,
            key_filename=key,
            allow_agent=key is None,
            look_for_keys=key is None,
            timeout=CONNECT_SECONDS,
            banner_timeout=LOGIN_SECONDS,
            auth_timeout=LOGIN_SECONDS,
        )
    except paramiko.BadHostKeyException as error:
        raise Unreached(
            f"its host key is not the one that was accepted, but {_fingerprint(error.key)}",
            "somebody may be in between; where it was installed anew: "
            f"ssh-keygen -R '{known_name(node)}', there and in the lab's folder, ssh/known_hosts",
        ) from error
    except paramiko.PasswordRequiredException as error:
        raise Unreached(
            f"the key {key} has a passphrase", "ssh-add it, and leave `key` out of the topology"
        ) from error
    except paramiko.AuthenticationException as error:
        which = f"the key {key}" if key else "every key that ssh finds"
        raise Unreached(
            f"it refuses the user '{node.user}' with {which}",
            f"ssh-copy-id -p {node.port} {node.user}@{node.address}; or name another `user` or `key`",
        ) from error
    except paramiko.ssh_exception.NoValidConnectionsError as error:
        words = "; ".join({str(getattr(each, "strerror", each)) for each in error.errors.values()})
        raise _silent(node, words) from error
    except TimeoutError as error:
        raise _silent(node, "no answer") from error
    except paramiko.SSHException as error:
        raise Unreached(f"SSH fails: {error}", "see sshd's log on the host") from error
    except ValueError as error:
        raise Unreached(f"the key {key} cannot be read: {error}", "name a private key of OpenSSH") from error
    except (OSError, socket.gaierror) as error:
        raise _silent(node, error.strerror or str(error)) from error


def _silent(node: Node, why: str) -> Unreached:
    return Unreached(
        f"no SSH server answers on port {node.port}: {why}",
        "is it on, is sshd running, and are `address` and `port` right?",
    )


def _fingerprint(key: paramiko.PKey) -> str:
    digest = base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
    return f"SHA256:{digest}"
