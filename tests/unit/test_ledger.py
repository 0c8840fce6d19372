"""The ledger of a host: what came is booked once, whatever was cut off, and nothing else is."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "playbooks" / "files"))
import ledger


class Host:
    """A host that packages come to."""

    def __init__(self) -> None:
        self.packages = ["bash"]
        self.users = ["root"]
        self.folders = ["/etc"]

    def take(self) -> ledger.Snapshot:
        return ledger.Snapshot(list(self.packages), list(self.users), ["root"], [], list(self.folders))

    def install(self, name: str) -> None:
        self.packages.append(name)
        self.users.append(name)
        self.folders.append(f"/var/lib/{name}")


def test_a_host_is_part_of_one_lab(tmp_path: Path) -> None:
    file = tmp_path / "ledger.json"
    for _ in range(2):
        ledger.Ledger(file).open("mine.1")
    assert '\n "lab": "mine.1",\n' in file.read_text()  # as the probe and the provider read it
    with pytest.raises(ledger.Trouble, match=r"part of the lab 'mine\.1'"):
        ledger.Ledger(file).open("yours.2")


def test_what_came_is_booked_also_when_the_booking_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "KEPT", tmp_path / "kept")
    file, host = tmp_path / "ledger.json", Host()
    book = ledger.Ledger(file, host.take)
    book.open("mine.1")
    book.begin()
    host.install("keystone")
    book.settle("layer-1")
    book.book["label"] = "layer-2"
    book.begin()
    host.install("heat")
    again = ledger.Ledger(file, host.take)  # the first was killed
    again.settle()
    again.settle()
    added = json.loads(file.read_text())["added"]
    assert [(entry["label"], entry["packages"], entry["users"]) for entry in added] == [
        ("layer-1", ["keystone"], ["keystone"]),
        ("layer-2", ["heat"], ["heat"]),
    ]
    assert added[1]["folders"] == ["/var/lib/heat"]


def test_units_go_in_the_opposite_order_and_shared_ones_stay(tmp_path: Path) -> None:
    steps = [
        {"id": "mariadb/controller", "units": ["mariadb"]},
        {"id": "nova/controller", "units": ["libvirtd", "nova-api"]},
        {"id": "ironic/controller", "units": ["libvirtd", "ironic-api"]},
        {"id": "identity"},
    ]
    (tmp_path / "steps.json").write_text(json.dumps(steps))
    assert ledger.units_of(set(), tmp_path) == ["ironic-api", "nova-api", "libvirtd", "mariadb"]
    assert ledger.units_of({"ironic"}, tmp_path) == ["ironic-api"]


def test_a_unit_that_the_owner_has_in_place_of_a_packages_is_the_owners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "OWNERS_UNITS", (tmp_path,))
    (tmp_path / "haproxy.service").write_text("[Service]\n")
    files = [
        "/usr/lib/systemd/system/haproxy.service",
        "/lib/systemd/system/virtlogd.socket",
        "/usr/lib/systemd/system/multi-user.target.wants/other.service",
        "/etc/haproxy/haproxy.cfg",
    ]
    assert ledger._units_among(files) == ["virtlogd.socket"]


def test_instances_of_a_template_are_found_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = (
        "ceph-osd@0.service loaded active running Ceph\n"
        "user@0.service loaded active running User Manager\n\n"
        "ceph.service loaded active running not ours\n"
    )
    monkeypatch.setattr(ledger, "_output", lambda *_, **__: listed)
    assert ledger._in_state("active", ["ceph-osd@.service", "gone.service"]) == ["ceph-osd@0.service"]
