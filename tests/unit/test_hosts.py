"""Hosts: what a preflight finds of them, whom it believes, and all of it at once."""

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import paramiko
import paramiko.common
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from stacklab.blueprint import Blueprint
from stacklab.errors import HostUnfit
from stacklab.host.checks import State
from stacklab.lab.settings import LabSettings
from stacklab.model.catalog import Catalog
from stacklab.provide.provider import Node
from stacklab.remote.checks import PACKAGES_DISK, SYSTEM_MEMORY, Coming, Wanted, judge, wanted
from stacklab.remote.connection import HostKey, KnownHosts, known_name
from stacklab.remote.facts import Facts, Unit, probe, read
from stacklab.remote.preflight import preflight

CATALOG = Catalog.read([Path(__file__).parents[2] / "profiles"])
RELEASE = CATALOG.release("epoxy")
NODE = Node("brain", "192.0.2.11", ("controller",), 0, 1, kind="host", provider_interface="eno2")
LAB = Wanted(
    NODE,
    RELEASE,
    "mine.1",
    packages=("mariadb-server", "keystone"),
    units=("mariadb", "keystone"),
    ports=((3306, "mariadb"), (5000, "keystone")),
    clouds=frozenset({"keystone"}),
    databases=frozenset({"keystone"}),
    coming=(Coming(frozenset(), 1000 - SYSTEM_MEMORY, 5000 - PACKAGES_DISK),),
)
PRINTED = """\
system debian trixie
clock 1000.5
architecture amd64
uid 0
name brain.example.org
cpus 4
memory 16000
available 12000
disk 90000
python yes
systemd yes
resolves yes
interface lo
interface eno1
interface eno2
address lo 127.0.0.1
address eno1 192.0.2.11
default eno1
port 22 sshd
unit keystone.service loaded inactive disabled
package openssh-server
mirror http://deb.example.org/debian/
answers http://deb.example.org/debian/
end
"""


def test_a_host_that_fits_has_no_findings() -> None:
    facts = read(PRINTED, 1000.0, 1001.0)
    assert facts.whole and facts.skew == 0.0
    assert judge(facts, LAB) == []


def test_all_that_is_wrong_with_a_host_is_found() -> None:
    facts = Facts(
        distribution="ubuntu",
        suite="noble",
        architecture="arm64",
        uid=1000,
        name="muscle",
        skew=-90.0,
        cpus=1,
        memory=2000,
        available=500,
        disk=100,
        dpkg_broken=True,
        interfaces=["lo", "eth0"],
        addresses={"eth0": ["10.0.0.5"]},
        ports={3306: "mysqld"},
        units=[Unit("mariadb", active=True, enabled=True), Unit("keystone", active=False, enabled=True)],
        packages={"keystone"},
        databases=["keystone", "shop"],
        foreign=["the folder /opt/stack"],
    )
    told = [f"{finding.name}: {finding.what}" for finding in judge(facts, LAB)]
    assert told == [
        "distribution: the system is ubuntu noble, and release epoxy is of debian trixie",
        "architecture: the machine is arm64, not amd64",
        "privileges: the user 'root' is neither root nor may it use sudo without a password",
        "system: it does not run systemd",
        "system: it has no Python, which Ansible needs",
        "name: its host name is 'muscle', and the topology calls it 'brain'",
        "name: its own name 'muscle' does not resolve on it",
        "address: none of its interfaces has the address 192.0.2.11; they have: 10.0.0.5",
        "size: 500 MiB of memory are free, and its services take 1000 MiB",
        "size: 100 MiB are free in /var/lib, and 4.9 GiB are needed",
        "clock: its clock is 90 s behind this machine's: tokens would not be valid",
        "interface: it has no interface 'eno2'; it has: eth0",
        "packages: packages on it are half installed",
        "ports: port 3306 of mariadb is taken by mysqld",
        "services: mariadb runs already, and not by this lab",
        "services: keystone is enabled already, and not by this lab",
        "openstack: there is an OpenStack on it already: the package keystone, the database keystone,"
        " the folder /opt/stack",
        "openstack: there are databases of MariaDB or MySQL on it: shop",
    ]
    assert all(finding.advice for finding in judge(facts, LAB))


def test_what_is_ours_on_a_host_is_not_foreign() -> None:
    facts = read(PRINTED, 1000.0, 1001.0)
    facts.ports[5000] = "uwsgi"
    facts.packages.add("keystone")
    facts.units = [Unit("keystone", active=True, enabled=True)]
    facts.dpkg_broken = True
    facts.lab = "mine.1"
    assert judge(facts, LAB) == []
    facts.lab = "others.2"
    assert [finding.name for finding in judge(facts, LAB)] == [
        "lab",
        "packages",
        "ports",
        "services",
        "openstack",
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"addresses": {"eno1": ["192.0.2.11"], "eno2": ["203.0.113.7"]}}, "is in use: 203.0.113.7"),
        ({"default_interfaces": ["eno2"]}, "is in use: the default route"),
        ({"masters": {"eno2": "bond0"}}, "is part of bond0 already"),
        ({"mirrors": {}}, "its apt has no archive with the suite trixie"),
        (
            {"mirrors": {"http://a/": "404  Not Found"}},
            "its mirror does not answer: http://a/ (404  Not Found)",
        ),
        ({"skew": 7.0}, "its clock is 7 s ahead of"),
    ],
)
def test_networks_and_clocks_are_looked_at(change: dict[str, object], told: str) -> None:
    facts = replace(read(PRINTED, 1000.0, 1001.0), **change)  # type: ignore[arg-type]
    (finding,) = judge(facts, LAB)
    assert told in finding.what


def test_packages_that_would_be_replaced_are_a_warning() -> None:
    facts = read(PRINTED.replace("end\n", "upgrade libc6 2.41-1 2.41-2\nend\n"), 1000.0, 1001.0)
    (finding,) = judge(facts, LAB)
    assert finding.state is State.WARNING and "libc6 2.41-1 -> 2.41-2" in finding.what


def test_what_a_probe_did_not_finish_is_not_whole() -> None:
    assert not read(PRINTED.removesuffix("end\n"), 1000.0, 1001.0).whole
    assert read("hexport 0CEA\n", 0, 1).ports == {3306: ""}


def test_the_probe_knows_what_to_look_for() -> None:
    program = probe("trixie", ["keystone"], ["keystone", "a.socket"], online=False)
    assert program.startswith(
        "suite=trixie\npackages=keystone\nunits='keystone.service a.socket'\nonline=no\n"
    )


def blueprint(nodes: Sequence[Node]) -> Blueprint:
    """A lab of hosts with all of layer 1, not made yet."""
    graph = CATALOG.graph("openstack")
    settings = LabSettings(
        profile="openstack", release="epoxy", topology="rack", node_kind="host", nodes=tuple(nodes)
    )
    return Blueprint(settings, 1, RELEASE, graph.cuts(1, {}, ()))


def test_a_host_is_asked_for_what_its_roles_need() -> None:
    muscle = replace(NODE, name="muscle", roles=("compute",))
    lab = blueprint([NODE, muscle])
    ours, theirs = (wanted(lab, node, "", online=True) for node in (NODE, muscle))
    assert (5000, "keystone") in ours.ports and not theirs.ports
    assert "nova-compute" in theirs.packages and "nova-compute" not in ours.packages
    assert {"keystone", "nova_api"} <= ours.databases
    assert len(ours.coming) > len(theirs.coming) > 0


def test_what_a_host_has_from_a_climb_that_was_cut_off_is_not_asked_for_twice() -> None:
    node = replace(NODE, disk=100_000)
    want = wanted(blueprint([node]), node, "mark", online=True)
    first = next(each for each in want.coming if each.units and each.memory)
    units = [Unit(name, True, True) for name in first.units]
    memory, disk = (
        sum(sizes) for sizes in zip(*((each.memory, each.disk) for each in want.coming), strict=True)
    )
    facts = Facts(lab="mark", available=memory - 1, disk=disk - 1, units=units)

    def lacks(facts: Facts) -> list[str]:
        return [finding.what for finding in judge(facts, want) if " are free" in finding.what]

    assert lacks(facts) == []
    assert len(lacks(replace(facts, lab=""))) == 2


class _Server(paramiko.ServerInterface):
    """An SSH server that takes one user with one key, and answers every command with the same text.

    Only its clock goes on.
    """

    def __init__(self, key: str, printed: str) -> None:
        self.key = key
        self.printed = printed

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        fits = username == "root" and key.get_base64() == self.key
        return paramiko.common.AUTH_SUCCESSFUL if fits else paramiko.common.AUTH_FAILED

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.common.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        def answer() -> None:
            with suppress(OSError, EOFError, paramiko.SSHException):  # the other side may have gone
                while channel.recv(65536):  # the probe, to its end
                    pass
                printed = self.printed.replace("clock 1000.5", f"clock {time.time()}")
                channel.sendall(printed.encode())
                channel.send_exit_status(0)
                channel.close()

        threading.Thread(target=answer, daemon=True).start()
        return True


def make_key(file: Path) -> paramiko.Ed25519Key:
    """A private key in a file."""
    text = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    file.write_bytes(text)
    return paramiko.Ed25519Key(filename=str(file))


@contextmanager
def served(folder: Path, name: str, printed: str = PRINTED) -> Iterator[tuple[Node, paramiko.PKey]]:
    """A host on loopback; its node, and the key that it shows."""
    user, host = make_key(folder / f"{name}-user"), make_key(folder / f"{name}-host")
    printed = printed.replace("192.0.2.11", "127.0.0.1")
    listener = socket.create_server(("127.0.0.1", 0))
    transports: list[paramiko.Transport] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(connection)
            transports.append(transport)
            transport.add_server_key(host)
            try:
                transport.start_server(server=_Server(user.get_base64(), printed))
            except (paramiko.SSHException, EOFError, OSError):
                continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        port = listener.getsockname()[1]
        key = str(folder / f"{name}-user")
        yield replace(NODE, name=name, address="127.0.0.1", port=port, key=key, provider_interface=""), host
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for transport in transports:
            transport.close()


def never(keys: Sequence[HostKey]) -> bool:
    """Nobody is there to ask."""
    return False


def test_a_host_whose_key_nobody_knows_is_refused_unless_accepted(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    known = KnownHosts(file, others=())
    printed = PRINTED.replace("brain", "one")
    asked: list[HostKey] = []
    with served(tmp_path, "one", printed) as (node, host):
        lab = blueprint([node])
        with pytest.raises(HostUnfit) as error:
            preflight(lab, known, "", never, online=False)
        assert "its host key is not known: ssh-ed25519 SHA256:" in error.value.detail
        assert "--accept-host-keys" in error.value.hint and not file.exists()

        def accept(keys: Sequence[HostKey]) -> bool:
            asked.extend(keys)
            return True

        answers = preflight(lab, known, "", accept, online=False)
        assert answers["one"].facts is not None and answers["one"].facts.cpus == 4
        assert preflight(lab, KnownHosts(file, others=()), "", never, online=False)
    assert [key.blob for key in asked] == [host.get_base64()]
    assert file.read_text() == f"{known_name(node)} ssh-ed25519 {host.get_base64()}\n"
    assert file.stat().st_mode & 0o777 == 0o600


def test_keys_that_the_user_has_accepted_before_become_the_labs(tmp_path: Path) -> None:
    with served(tmp_path, "one", PRINTED.replace("brain", "one")) as (node, host):
        mine = tmp_path / "mine"
        mine.write_text(f"{known_name(node)} {host.get_name()} {host.get_base64()}\n")
        assert preflight(blueprint([node]), KnownHosts(tmp_path / "lab", [mine]), "", never, online=False)
    assert (tmp_path / "lab").read_text() == mine.read_text()


def test_everything_that_is_wrong_with_all_hosts_is_told_at_once(tmp_path: Path) -> None:
    known = KnownHosts(tmp_path / "known_hosts", others=())
    with (
        served(tmp_path, "changed") as (changed, _),
        served(tmp_path, "refusing") as (refusing, host),
        served(tmp_path, "old", PRINTED.replace("trixie", "bookworm").replace("brain", "old")) as (old, key),
    ):
        other = make_key(tmp_path / "other")
        known.accept(
            [
                HostKey(changed, other.get_name(), other.get_base64()),
                HostKey(refusing, host.get_name(), host.get_base64()),
                HostKey(old, key.get_name(), key.get_base64()),
            ]
        )
        gone = replace(changed, name="gone", port=free_port())
        keyless = replace(changed, name="keyless", key=str(tmp_path / "nowhere"))
        refusing = replace(refusing, name="refusing", key=str(tmp_path / "other"))
        nodes = [replace(node, roles=("storage",)) for node in (gone, keyless, refusing, changed)]
        with pytest.raises(HostUnfit) as error:
            preflight(blueprint([old, *nodes]), known, "", never, online=False)
    assert error.value.message == "5 problems with 5 hosts; nothing was changed on any"
    detail = error.value.detail
    for words in (
        "the system is debian bookworm, and release epoxy is of debian trixie",
        f"no SSH server answers on port {gone.port}: Connection refused",
        f"there is no key file {keyless.key}",
        f"it refuses the user 'root' with the key {refusing.key}",
        "its host key is not the one that was accepted, but SHA256:",
    ):
        assert words in detail


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
