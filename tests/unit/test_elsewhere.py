"""Another machine's libvirt: how it is named, and what its network cards say."""

import os
import socket
import struct
from pathlib import Path

import pytest

from stacklab.blueprint import UpRequest, resolve
from stacklab.errors import UsageError
from stacklab.home import Home
from stacklab.lab.lab import Lab
from stacklab.lab.settings import LabSettings, patience_of
from stacklab.provide import wire
from stacklab.provide.elsewhere import SSH_OPTIONS, Elsewhere, parse

URI = "qemu+ssh://root@big/system"


def test_a_uri_says_how_to_get_there() -> None:
    assert parse(URI) == Elsewhere("root@big")
    assert parse("qemu+ssh://Big/system").host == "Big"  # an alias of ssh_config(5)
    assert parse("qemu+ssh://big:2222/system?keyfile=/k&socket=/s&command=/c") == Elsewhere(
        "big", 2222, keyfile="/k", socket="/s", command="/c"
    )
    assert parse(f"{URI}?keyfile=/my%20key").ssh_command("-N") == [
        "ssh",
        *SSH_OPTIONS,
        '-oIdentityFile="/my key"',
        "-oIdentitiesOnly=yes",
        "-N",
        "root@big",
    ]


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("qemu:///system", r"not of the form qemu\+ssh://"),
        ("qemu+tls://big/system", r"not of the form qemu\+ssh://"),
        ("qemu+ssh:///system", r"not of the form qemu\+ssh://"),
        ("big", r"not of the form qemu\+ssh://"),
        ("qemu+ssh://big/session", "names '/session'"),
        ("qemu+ssh://big:many/system", "is no URI"),
        (f"{URI}?no_tty=1", "'no_tty' is not understood; there is: keyfile"),
        ("qemu+ssh://-oProxyCommand=evil/system", "begins with '-'"),
        ("qemu+ssh://root:secret@big/system", "a password in a URI"),
        (f"{URI}?keyfile=key", "keyfile has to begin with '/'"),
    ],
)
def test_another_uri_is_refused_with_what_is_wrong(uri: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse(uri)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "state", tmp_path / "cache")


def test_nodes_elsewhere_are_virtual_machines(home: Home) -> None:
    lab = Lab(home, "far")
    settings = resolve(lab, UpRequest(lab="far", connect=URI)).settings
    assert (settings.node_kind, settings.connect) == ("vm", URI)
    with pytest.raises(UsageError, match="nodes of kind vm, not 'lxc'"):
        resolve(lab, UpRequest(lab="far", connect=URI, node_kind="lxc"))
    lab.save(settings)
    assert lab.is_elsewhere
    assert resolve(lab, UpRequest(lab="far")).settings.connect == URI
    with pytest.raises(UsageError, match="cannot move to qemu"):
        resolve(lab, UpRequest(lab="far", connect="qemu+ssh://root@other/system"))


def test_what_is_emulated_elsewhere_is_waited_for_longer(home: Home) -> None:
    settings = LabSettings(profile="p", release="r", topology="t", node_kind="vm", connect=URI)
    assert patience_of(settings, home.cache) > 1.0
    assert patience_of(settings.model_copy(update={"connect_kvm": True}), home.cache) == 1.0


def test_frames_come_through_as_they_were_sent() -> None:
    frames = [b"a" * 60, b"b" * 1514, b"c"]
    ours, machine = socket.socketpair()
    read, write = os.pipe()
    with machine:
        for frame in frames:
            machine.sendall(struct.pack("!I", len(frame)) + frame)
        machine.shutdown(socket.SHUT_WR)
        wire.from_machine(write, ours)
        assert os.read(read, 65535) == b"".join(frames)

        os.write(write, frames[1])
        os.close(write)
        wire.to_machine(read, ours)
        ours.close()
        assert machine.recv(4096) == struct.pack("!I", 1514) + frames[1]
    os.close(read)
