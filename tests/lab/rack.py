"""Machines that only SSH reaches: containers in a network of their own, as somebody else's rack would be.

They are made of the lab's base image, but nothing of stacklab is in them. What they need of the mirror goes
through a proxy in that network, which this machine's own network answers.
"""

import contextlib
import http.client
import http.server
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from stacklab.files import remove_tree
from stacklab.home import Home
from stacklab.host.apt import host_mirror
from stacklab.host.archive import Archive
from stacklab.images.base import ensure_base
from stacklab.images.guest import build_guest, guest_inputs
from stacklab.images.packages import Downloads, ensure_packages
from stacklab.images.usage import store_of
from stacklab.lab.namespace import Namespace
from stacklab.model.catalog import Catalog
from stacklab.model.topology import MANAGEMENT
from stacklab.provide.lxc import LxcProvider
from stacklab.provide.provider import Node, NodeFile
from tests.lab.program import Done, Program, wait_for

PROXY_PORT = 3128
BOOT_SECONDS = 120.0
COPIED = ("Content-Type", "Content-Length", "Last-Modified", "ETag", "Content-Range")


class _Relay(http.server.BaseHTTPRequestHandler):
    """Passes what apt asks for on to the mirror."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        asked = ("Range", "If-Modified-Since", "If-Range", "User-Agent", "Cache-Control")
        headers = {name: self.headers[name] for name in asked if self.headers[name]}
        try:
            answer = urllib.request.urlopen(urllib.request.Request(self.path, headers=headers), timeout=60)
        except urllib.error.HTTPError as error:
            answer = error
        except OSError as error:
            self.send_error(502, str(error))
            return
        with answer:
            body = answer.read() if answer.status not in (204, 304) else b""
            self.send_response(answer.status)
            for name in COPIED:
                if answer.headers[name] and name != "Content-Length":
                    self.send_header(name, answer.headers[name])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            try:
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError, http.client.HTTPException):
                self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        return None


@dataclass
class Rack:
    """Machines in a network of their own. folder: on a disk, for what they write."""

    folder: Path
    program: Program
    nodes: dict[str, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.namespace = Namespace(self.folder, "rack")
        self.provider = LxcProvider(self.namespace, self.folder / "nodes")
        self.key = self.folder / "key"
        self.home = Home(self.program.state, self.program.cache)
        self.release = Catalog.load().release("epoxy")
        self._proxy: http.server.ThreadingHTTPServer | None = None

    def build(self, *names: str, packages: Sequence[str] = ()) -> None:
        """Make the machines, with these packages beside the base system, and wait until they are up."""
        store = store_of(self.home)
        store.ensure("guest", guest_inputs(self.release.pockets), self._build_guest)
        downloads, log = Downloads(self.home.cache / "packages"), self.folder / "base.log"
        image = ensure_base(store, self.release, host_mirror(), downloads.base, log)
        if packages:
            image = ensure_packages(store, image, packages, downloads, log)
        trees = [each.tree for each in store.chain(image)]
        _make_key(self.key)
        self.namespace.start()
        for number, name in enumerate(names, start=11):
            node = Node(name, f"10.20.0.{number}", ("controller",), memory=8192, cpus=2)
            self.nodes[name] = node
            self.provider.create(node, trees, self._files(node))
            self.provider.start(node)
        # Its threads answer in the network of whoever starts them: only the socket is in the rack's.
        with self.namespace.network():
            self._proxy = http.server.ThreadingHTTPServer((MANAGEMENT.gateway, PROXY_PORT), _Relay)
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        for name in names:
            self._wait_until_up(name)

    def _build_guest(self, folder: Path) -> None:
        """The guest is this machine's to build: at the desk in the rack nothing answers for the mirror."""
        archive = Archive(
            host_mirror(),
            self.release.pockets,
            self.home.cache / "packages" / "guest",
            components=self.release.components,
        )
        archive.update()
        with tempfile.TemporaryDirectory(dir=folder) as work:
            build_guest(folder, archive, Path(work))

    def _wait_until_up(self, name: str) -> None:
        """Wait until a machine's SSH server lets us in, and its systemd has nothing left to start."""

        def is_up() -> bool:
            jobs = self.run(name, "systemctl list-jobs -q")
            return jobs.returncode == 0 and not jobs.stdout.strip()

        wait_for(f"the boot of {name}", is_up, BOOT_SECONDS)

    def destroy(self) -> None:
        """End them, and remove all that they had."""
        if self._proxy is not None:
            self._proxy.shutdown()
            self._proxy.server_close()
        self.namespace.stop()
        remove_tree(self.folder)

    def run(self, name: str, command: str) -> Done:
        """Run a shell text on a machine as root, as its owner would."""
        options = [
            "-F/dev/null",
            "-oStrictHostKeyChecking=no",
            "-oUserKnownHostsFile=/dev/null",
            "-oLogLevel=ERROR",
        ]
        argv = [
            "ssh",
            *options,
            "-oBatchMode=yes",
            f"-i{self.key}",
            f"root@{self.nodes[name].address}",
            command,
        ]
        inside = self.namespace.enter_command(argv, network_only=True)
        return subprocess.run(inside, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)

    def do(self, name: str, command: str) -> str:
        """Run a shell text that has to succeed; what it printed."""
        done = self.run(name, command)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def stacklab(self, *arguments: str) -> Done:
        """Run stacklab on a desk in the machines' network."""
        argv = self.namespace.enter_command(self.program.argv(*arguments), network_only=True)
        return subprocess.run(
            argv,
            env=self.program.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def start(self, *arguments: str, log: Path) -> "subprocess.Popen[bytes]":
        """Start stacklab on a desk in the machines' network, its output going to `log`."""
        argv = self.namespace.enter_command(self.program.argv(*arguments), network_only=True)
        with log.open("wb") as output:
            return subprocess.Popen(
                argv, env=self.program.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def power_off(self, name: str) -> None:
        """Pull a machine's plug: its disk stays as it is at this moment."""
        with contextlib.closing(self.namespace.connect()) as connection:
            connection.lookupByName(name).destroy()

    def power_on(self, name: str) -> None:
        """Start a machine and wait until it is up."""
        self.provider.start(self.nodes[name])
        self._wait_until_up(name)

    def topology(self, hosts: Mapping[str, Mapping[str, object]]) -> str:
        """Write a topology of machines, each with what is said of it; the file's path."""
        nodes = [
            {
                "name": name,
                "kind": "host",
                "address": self.nodes[name].address,
                "key": str(self.key),
                "roles": ["controller"],
                **more,
            }
            for name, more in hosts.items()
        ]
        file = self.folder / "rack.yaml"
        document = {"version": 1, "name": "rack", "title": "Somebody's rack", "nodes": nodes}
        file.write_text(yaml.safe_dump(document, sort_keys=False))
        return str(file)

    def _files(self, node: Node) -> dict[str, NodeFile]:
        mirror = host_mirror()
        sources = mirror.sources(self.release.pockets, self.release.components)
        proxy = f'Acquire::http::Proxy "http://{MANAGEMENT.gateway}:{PROXY_PORT}";\n'
        host_key = self.folder / f"host-{node.name}"
        _make_key(host_key)
        return {
            "/etc/hostname": NodeFile(f"{node.name}\n"),
            "/etc/hosts": NodeFile(f"127.0.0.1 localhost\n{node.address} {node.name}\n"),
            "/etc/ssh/ssh_host_ed25519_key": NodeFile(host_key.read_text(), 0o600),
            "/etc/ssh/ssh_host_ed25519_key.pub": NodeFile(host_key.with_suffix(".pub").read_text()),
            "/root/.ssh/authorized_keys": NodeFile(self.key.with_suffix(".pub").read_text(), 0o600),
            "/etc/apt/sources.list": NodeFile("\n".join(sources) + "\n"),
            "/etc/apt/apt.conf.d/90proxy": NodeFile(proxy),
        }


def _make_key(file: Path) -> None:
    if not file.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)], check=True)


LOOK = {
    "packages": "dpkg-query --show --showformat='${db:Status-Abbrev} ${Package}\\n' | sort",
    "users": "getent passwd | sort",
    "groups": "getent group | cut -d: -f1 | sort",
    # Not the session of who took it away: under control groups v1 its empty scope stays.
    "units": "systemctl list-unit-files --no-legend --plain | awk '!/^session-/ { print $1, $2 }' | sort",
    "failed": "systemctl list-units --failed --no-legend --plain",
    "ports": "cat /proc/net/tcp /proc/net/tcp6 | awk '$4 == \"0A\" { print $2 }' | sort",
    "interfaces": "ls /sys/class/net",
    "processes": "cat /proc/[0-9]*/comm 2> /dev/null | grep -v -e cat -e sort -e grep -e sh | sort -u",
    "files": "find / -xdev ! -path '/proc/*' ! -path '/sys/*' ! -path '/run/*' ! -path '/tmp/*'"
    " ! -path '/var/lib/apt/*' ! -path '/var/cache/*' ! -path '/var/log/*' ! -path '/var/lib/dpkg/*'"
    " ! -path '/var/lib/systemd/*' ! -path '/var/tmp/systemd-private-*'"
    " ! -path '/var/lib/ucf/*' ! -path '/root/.ssh/*' | sort",
    "contents": "find /etc /usr/sbin -xdev -type f ! -name '*-' ! -name 'ld.so.cache' ! -name '.pwd.lock'"
    " ! -name machine-id -exec sha256sum {} + | sort -k2",
}
"""What of a machine a lab could leave changed, and the commands that show it."""


def look(rack: Rack, name: str) -> dict[str, list[str]]:
    """A machine as it is now."""
    return {what: rack.do(name, f"{command} || true").splitlines() for what, command in LOOK.items()}


def differences(before: Mapping[str, list[str]], after: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """What came (+) and what went (-), by what it is."""
    found = {
        what: [f"+ {line}" for line in after[what] if line not in set(before[what])]
        + [f"- {line}" for line in before[what] if line not in set(after[what])]
        for what in before
    }
    return {what: lines for what, lines in found.items() if lines}
