"""The guest image boots in plain QEMU, emulated, with 128 MiB, and does what an instance is to do.

Costs about a minute, and the download of a kernel (40 MB) where the machine's cache has none.
"""

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from stacklab.host.apt import host_mirror
from stacklab.host.archive import Archive
from stacklab.host.kvm import boot
from stacklab.images.guest import Guest, build_guest
from stacklab.model.catalog import Catalog
from tests.lab.program import Program, wait_for

MIB = 2**20
BOOT_SECONDS = 120.0  # a few when the machine has nothing else to do
METADATA = (
    '{"uuid": "8f2c1a52-2b6d-4a44-9f0c-6d2f5f0a9a01", "hostname": "probe.novalocal", "name": "probe", '
    '"meta": {"note": "a, b {c}"}, "public_keys": {"my key": "%s\\n"}, "keys": [{"name": "my key"}]}'
)
USER_DATA = "#!/bin/sh\necho user data ran as $(id -un)\ndate >>/root/user-data-ran\n"

# Answers one request, on its standard input and output, from the files below the folder it is given.
METADATA_SERVICE = """
import pathlib, sys
path = sys.stdin.buffer.readline().split()[1].decode()
file = pathlib.Path(sys.argv[1] + path)
body = file.read_bytes() if file.is_file() else b""
status = b"200 OK" if file.is_file() else b"404 Not Found"
head = b"HTTP/1.0 %s\\r\\nContent-Length: %d\\r\\n\\r\\n" % (status, len(body))
sys.stdout.buffer.write(head + body)
"""


@dataclass(frozen=True)
class Machine:
    """A running QEMU with the guest's disk."""

    folder: Path
    key: Path
    port: int
    qemu: "subprocess.Popen[bytes]"

    @property
    def console(self) -> str:
        return (self.folder / "console").read_text(errors="replace")

    def wait_until_up(self, times: int = 1) -> re.Match[str]:
        """Wait for the line that says that the guest is up, for the nth time."""
        deadline = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < deadline and self.qemu.poll() is None:
            lines = [
                *re.finditer(r"^stacklab guest (\S+) is up: (\S+) after (\d+) s\r?$", self.console, re.M)
            ]
            if len(lines) >= times:
                return lines[-1]
            time.sleep(0.1)
        pytest.fail(f"the guest did not come up; its console:\n{self.console}", pytrace=False)

    def ssh(self, command: str, user: str = "root") -> str:
        options = [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "BatchMode=yes",
            "LogLevel=ERROR",
        ]
        words = [word for option in [*options, "ConnectTimeout=30"] for word in ("-o", option)]
        where = ["-i", str(self.key), "-p", str(self.port), f"{user}@127.0.0.1"]
        done = subprocess.run(
            ["ssh", *words, *where, command], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def press_power_button(self) -> int:
        """QEMU's exit code once the guest has shut down."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self.folder / "monitor"))
            monitor.recv(1000)  # the greeting; what is sent before it is lost
            monitor.sendall(b"system_powerdown\n")
            return self.qemu.wait(timeout=60)


@pytest.fixture(scope="module")
def guest(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    release = Catalog.load(()).release("epoxy")
    # Where `up` keeps the guest's packages.
    archive = Archive(host_mirror(), release.pockets, program.cache / "packages" / "guest")
    archive.update()
    return build_guest(tmp_path_factory.mktemp("guest"), archive, tmp_path_factory.mktemp("work"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a key, and with what a cloud says about an instance that has it."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    latest = tmp_path / "cloud" / "openstack" / "latest"
    latest.mkdir(parents=True)
    (latest / "meta_data.json").write_text(METADATA % (tmp_path / "key.pub").read_text().strip())
    (latest / "user_data").write_text(USER_DATA)
    return tmp_path


@contextmanager
def running(
    guest: Guest, folder: Path, *arguments: str, disk: str = "", network: str = ""
) -> Iterator[Machine]:
    """Boot a copy of the guest's disk, kept in `folder` from one boot to the next."""
    overlay = folder / "disk.qcow2"
    if not overlay.exists():
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(guest.disk)]
        subprocess.run([*create, str(overlay), *disk.split()], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *("qemu-system-x86_64", "-machine", "pc,accel=tcg", "-m", "128", "-display", "none"),
        *("-serial", f"file:{folder / 'console'}", "-monitor", f"unix:{folder / 'monitor'},server,nowait"),
        *("-drive", f"file={overlay},if=virtio"),
        *("-nic", f"user,model=virtio,hostfwd=tcp:127.0.0.1:{port}-:22{network}"),
        *arguments,
    ]
    (folder / "console").touch()
    qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield Machine(folder, folder / "key", port, qemu)
    finally:
        qemu.kill()
        qemu.wait()


def config_drive(folder: Path) -> list[str]:
    """The cloud's words on a disk: QEMU shows the folder as a FAT file system with Nova's label."""
    source = f"file.driver=vvfat,file.dir={folder / 'cloud'},file.label=config-2,file.fat-type=16"
    return ["-drive", f"{source},format=raw,if=virtio,readonly=on"]


def test_the_image_is_small(guest: Guest) -> None:
    assert guest.disk.stat().st_size < 20 * MIB


def test_its_kernel_can_prove_an_accelerator(guest: Guest) -> None:
    assert boot(guest.kernel, accelerator="tcg", seconds=BOOT_SECONDS).works


def test_it_learns_from_a_config_drive_and_keeps_what_is_written(guest: Guest, folder: Path) -> None:
    with running(guest, folder, *config_drive(folder)) as machine:
        said = machine.wait_until_up()
        assert said.group(1, 2) == ("probe", "10.0.2.15")
        assert machine.ssh("id -un; hostname").split() == ["root", "probe"]
        assert machine.ssh("id -u; sudo id -u; sudo -u nobody id -u", user="guest").split() == [
            "1000",
            "0",
            "65534",
        ]
        assert "disk" in machine.ssh("lsblk -lb --nodeps", user="guest")
        assert machine.ssh("cat /var/log/user-data.log").strip() == "user data ran as root"
        assert machine.ssh("cut -d: -f2 /etc/shadow | sort -u").strip() == "*"  # nobody has a password
        # Not before SSH has passed its exit status on: the guest ends the server first.
        machine.ssh("echo kept >/root/kept; (sleep 1; reboot) >/dev/null 2>&1 &")
        machine.wait_until_up(times=2)
        assert machine.ssh("cat /root/kept; wc -l </root/user-data-ran").split() == ["kept", "1"]
        assert machine.press_power_button() == 0
        assert "reboot: Power down" in machine.console


def test_it_learns_from_the_metadata_service_and_takes_the_whole_disk(guest: Guest, folder: Path) -> None:
    (folder / "service.py").write_text(METADATA_SERVICE)
    service = f"{sys.executable} {folder / 'service.py'} {folder / 'cloud'}"
    network = f",net=169.254.169.0/24,guestfwd=tcp:169.254.169.254:80-cmd:{service}"
    with running(guest, folder, disk="1G", network=network) as machine:
        assert machine.wait_until_up().group(1) == "probe"
        wait_for(
            "a file system as large as the disk",
            lambda: int(machine.ssh("df -m / | tail -n 1").split()[1]) > 900,
            BOOT_SECONDS,
        )
        assert machine.ssh("mkfs.ext4 -V 2>&1; blkid").count("guest") == 1
        address = "http://169.254.169.254/openstack/latest"
        assert '"name": "probe"' in machine.ssh(f"curl {address}/meta_data.json", user="guest")
        assert machine.ssh(f"curl -s {address}/nothing || echo $?", user="guest").strip() == "22"


def test_a_second_network_and_a_second_disk_can_be_used(guest: Guest, folder: Path) -> None:
    volume = folder / "volume"
    with volume.open("wb") as stream:
        stream.truncate(32 * MIB)
    more = ["-nic", "user,model=virtio,net=10.9.0.0/24", "-drive", f"file={volume},format=raw,if=virtio"]
    with running(guest, folder, *config_drive(folder), *more) as machine:
        machine.wait_until_up()

        def has_both_addresses() -> bool:
            addresses = machine.ssh("ip -4 -o addr")
            return "10.0.2.15/24" in addresses and "10.9.0.15/24" in addresses

        wait_for("an address of each network", has_both_addresses, BOOT_SECONDS)
        device = machine.ssh(
            "for d in /sys/class/block/vd?; do [ $(cat $d/size) = 65536 ] && echo ${d##*/}; done"
        )
        make = f"mkfs.ext4 -q /dev/{device.strip()} && mount /dev/{device.strip()} /mnt && df /mnt"
        assert "/mnt" in machine.ssh(make)
