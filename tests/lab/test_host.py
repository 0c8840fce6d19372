"""Nodes of kind `host`: machines that only SSH reaches, made by these tests and known to stacklab by address.

Some five minutes on two cores, most of it in the slow tests: two containers, of which one climbs to a cloud
that gives out tokens, or to all of layer 1, and is left as it was found.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.machine import TESTS_FOLDER
from tests.lab.program import Program, wait_for
from tests.lab.rack import Rack, differences, look

pytestmark = pytest.mark.lab

APT_LOG = "/var/log/stacklab/packages.log"
PROFILES = str(Path(__file__).parent / "profiles")
IDENTITY = ("--path", PROFILES, "--profile", "identity", "--layer", "1")
EVERYTHING: dict[str, object] = {
    "roles": ["controller", "compute", "network", "storage"],
    "interfaces": {"provider": "eth1"},
}


@pytest.fixture(scope="module")
def rack(program: Program) -> Iterator[Rack]:
    """Two machines in a network of their own."""
    folder = Path(tempfile.mkdtemp(prefix=TESTS_FOLDER.strip("/"), dir="/var/tmp"))
    rack = Rack(folder / "rack", program)
    try:
        rack.build("brain", "muscle")
        yield rack
    finally:
        rack.destroy()
        shutil.rmtree(folder, ignore_errors=True)


def test_unknown_host_keys_are_refused_and_nothing_is_changed(rack: Rack) -> None:
    before = {name: look(rack, name) for name in rack.nodes}
    file = rack.topology({"brain": {}, "muscle": {"roles": ["storage"]}})
    done = rack.stacklab("up", "--lab", "rack", "--topology", file, *IDENTITY)
    assert done.returncode == 3, done.stderr
    assert "2 problems with 2 hosts; nothing was changed on any" in done.stderr
    for name in rack.nodes:
        shown = rack.do(name, "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub").split()[1]
        assert f"its host key is not known: ssh-ed25519 {shown}" in done.stderr
        assert differences(before[name], look(rack, name)) == {}
    assert "--accept-host-keys" in done.stderr


def test_all_that_is_wrong_with_two_hosts_is_told_at_once(rack: Rack) -> None:
    rack.do("brain", "systemd-run --quiet --unit=squatter python3 -m http.server 5000 --bind 127.0.0.1")
    wait_for("the squatter", lambda: rack.do("brain", "ss -Hltn sport = :5000"), 30.0)
    rack.do("brain", "mkdir -p /opt/stack /var/lib/mysql/keystone /var/lib/mysql/shop")
    rack.do("muscle", "useradd --create-home guest; cp -r /root/.ssh ~guest/; chown -R guest ~guest/.ssh")
    before = {name: look(rack, name) for name in rack.nodes}
    wrong: dict[str, dict[str, object]] = {
        "brain": {**EVERYTHING, "interfaces": {"provider": "eth0"}, "memory": "1024 GiB"},
        "muscle": {"roles": ["compute"], "interfaces": {"provider": "eth9"}, "user": "guest"},
    }
    file = rack.topology(wrong)
    done = rack.stacklab("up", "--lab", "rack", "--topology", file, "--layer", "1", "--accept-host-keys")
    try:
        assert done.returncode == 3, done.stderr
        for words in (
            "host key of brain (10.20.0.11, port 22): ssh-ed25519 SHA256:",
            "brain (10.20.0.11):",
            "the topology asks for 1024.0 GiB",
            "the interface 'eth0' is in use: 10.20.0.11",
            "port 5000 of keystone is taken by python3",
            "there is an OpenStack on it already: the database keystone, the folder /opt/stack",
            "there are databases of MariaDB or MySQL on it: shop",
            "muscle (10.20.0.12):",
            "the user 'guest' is neither root nor may it use sudo without a password",
            "it has no interface 'eth9'; it has: eth0, eth1",
        ):
            assert words in done.stderr
        for name in rack.nodes:
            assert differences(before[name], look(rack, name)) == {}
        assert not (rack.program.state / "labs" / "rack" / "lab.yaml").exists()
    finally:
        rack.do("brain", "systemctl stop squatter; rm -r /opt/stack /var/lib/mysql")
        rack.do("muscle", "userdel --remove guest")


@pytest.mark.slow
def test_a_host_climbs_and_is_left_as_it_was_found(rack: Rack) -> None:
    """The profile is the smallest there is; what is undone is what every service has done to a host."""
    before = look(rack, "brain")
    file = rack.topology({"brain": {}})
    done = rack.stacklab("up", "--lab", "rack", "--topology", file, *IDENTITY, "--accept-host-keys")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "destroy will not undo" in done.stdout
    climbed = differences(before, look(rack, "brain"))
    assert "+ ii  keystone" in climbed["packages"] and "+ keystone.service enabled" in climbed["units"]

    for words in (
        ("verify", "--lab", "rack"),
        ("exec", "--lab", "rack", "--", "openstack", "token", "issue"),
        ("ssh", "--lab", "rack", "brain", "--", "systemctl", "is-active", "keystone"),
        ("logs", "--lab", "rack", "keystone"),
        ("stop", "--lab", "rack"),
        ("status", "--lab", "rack"),
        ("start", "--lab", "rack"),
        ("status", "--lab", "rack"),
    ):
        done = rack.stacklab(*words)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    assert "brain" in done.stdout and "running" in done.stdout
    done = rack.stacklab("up", "--lab", "rack")
    assert "was up already" in done.stdout, done.stdout + done.stderr
    for choice, is_there in (("--with", True), ("--without", False)):
        done = rack.stacklab("up", "--lab", "rack", choice, "lingering")
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        assert (rack.run("brain", "test -e /run/lingering").returncode == 0) == is_there
    done = rack.stacklab("checkpoint", "save", "here", "--lab", "rack")
    assert done.returncode == 2 and "hosts are not frozen" in done.stderr

    done = rack.stacklab("destroy", "--lab", "rack", "--yes")
    assert done.returncode == 0, done.stderr
    assert differences(before, look(rack, "brain")) == {}


@pytest.mark.slow
def test_a_host_that_goes_away_in_the_middle_is_told_and_up_resumes(rack: Rack, tmp_path: Path) -> None:
    """The power of the host fails while its packages are installed; afterwards the same command goes on."""
    before = look(rack, "brain")
    file = rack.topology({"brain": {}})
    log = tmp_path / "up.log"
    up = rack.start("up", "--lab", "rack", "--topology", file, *IDENTITY, "--accept-host-keys", log=log)
    wait_for("packages", lambda: "Unpacking" in rack.run("brain", f"cat {APT_LOG}").stdout, 300.0)
    rack.power_off("brain")
    assert up.wait(timeout=300.0) == 1, log.read_text()
    assert "the host 'brain' went away" in log.read_text()
    done = rack.stacklab("status", "--lab", "rack")
    assert done.returncode == 0 and "unreachable" in done.stdout
    done = rack.stacklab("up", "--lab", "rack")
    assert done.returncode == 3 and "no SSH server answers on port 22" in done.stderr
    rack.power_on("brain")
    done = rack.stacklab("up", "--lab", "rack")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    done = rack.stacklab("destroy", "--lab", "rack", "--yes")
    assert done.returncode == 0, done.stderr
    assert differences(before, look(rack, "brain")) == {}


@pytest.mark.slow
def test_all_of_layer_1_on_a_host_is_left_without_a_trace(rack: Rack) -> None:
    """An instance that still runs goes with the cloud. A quarter of an hour."""
    before = look(rack, "brain")
    file = rack.topology({"brain": EVERYTHING})
    done = rack.stacklab("up", "--lab", "rack", "--topology", file, "--layer", "1", "--accept-host-keys")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    done = rack.stacklab("verify", "--lab", "rack")
    assert done.returncode == 0, done.stdout + done.stderr
    boot = "openstack server create --image guest --flavor tiny --network provider --wait left-over"
    done = rack.stacklab("exec", "--lab", "rack", "--", *boot.split())
    assert done.returncode == 0, done.stderr
    done = rack.stacklab("destroy", "--lab", "rack", "--yes")
    assert done.returncode == 0, done.stderr
    assert differences(before, look(rack, "brain")) == {}
