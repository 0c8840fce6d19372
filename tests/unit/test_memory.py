"""Keeping the memory of virtual machines: when it fails half-way, all of them run on."""

from pathlib import Path
from typing import Any, cast

import libvirt
import pytest

from stacklab.errors import StepFailed
from stacklab.freeze import freeze
from stacklab.home import Home
from stacklab.images.store import Store
from stacklab.lab.lab import Lab
from stacklab.lab.namespace import Namespace
from stacklab.lab.settings import LabSettings
from stacklab.provide.disks import CREATED
from stacklab.provide.provider import Node, NodeState
from stacklab.provide.vm import MEMORY, VmProvider

NODES = tuple(Node(name, "", ("compute",), 512, 1, kind="vm") for name in ("one", "two", "three"))


def refusal(code: int) -> libvirt.libvirtError:
    error = libvirt.libvirtError("no")
    error.err = (code, 0, "no", 0, "", "", "", 0, 0)
    return error


class Domain:
    """A virtual machine as libvirt has it. fault: what saving its memory ends with."""

    def __init__(self) -> None:
        self.state = "running"
        self.fault: BaseException | None = None
        self.written = True

    def isActive(self) -> bool:
        return self.state != "off"

    def suspend(self) -> None:
        self.state = "paused"

    def resume(self) -> None:
        if self.state == "off":
            raise refusal(libvirt.VIR_ERR_OPERATION_INVALID)
        self.state = "running"

    def saveFlags(self, file: str, _xml: None, _flags: int) -> None:
        if self.written:
            Path(file).touch()
            self.state = "off"
        if self.fault:
            raise self.fault


class Machines:
    """The namespace of a lab, with the connection to a libvirtd that has three virtual machines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.domains = {node.name: Domain() for node in NODES}
        for node in NODES:
            (folder / node.name).mkdir(parents=True)
            (folder / node.name / CREATED).touch()

    def pid(self) -> int:
        return 1

    def connect(self, _driver: str) -> "Machines":
        return self

    def lookupByName(self, name: str) -> Domain:
        return self.domains[name]

    def close(self) -> None:
        pass

    def states(self) -> list[str]:
        return [domain.state for domain in self.domains.values()]

    def kept(self) -> list[str]:
        return [name for name in self.domains if (self.folder / name / MEMORY).exists()]


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    return Machines(tmp_path / "nodes")


@pytest.fixture
def provider(machines: Machines, tmp_path: Path) -> VmProvider:
    def run(_node: str, _argv: Any) -> Any:
        raise AssertionError

    return VmProvider(cast(Namespace, machines), machines.folder, run, lambda: False)


def test_nodes_whose_memory_is_kept_are_off(machines: Machines, provider: VmProvider) -> None:
    provider.hibernate(NODES)
    assert machines.states() == ["off", "off", "off"]
    assert machines.kept() == ["one", "two", "three"]


def test_a_memory_that_cannot_be_written_leaves_no_node_paused(
    machines: Machines, provider: VmProvider
) -> None:
    machines.domains["two"].written = False
    machines.domains["two"].fault = refusal(libvirt.VIR_ERR_OPERATION_FAILED)  # a full disk, for one
    with pytest.raises(StepFailed, match="libvirt: no"):
        provider.hibernate(NODES)
    assert machines.states() == ["off", "running", "running"]
    assert machines.kept() == ["one"]


def test_ctrl_c_loses_no_memory(machines: Machines, provider: VmProvider) -> None:
    machines.domains["two"].fault = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        provider.hibernate(NODES)
    assert machines.states() == ["off", "off", "running"]
    assert machines.kept() == ["one", "two"]


def test_a_freeze_that_fails_on_its_way_to_sleep_wakes_the_lab(tmp_path: Path) -> None:
    class Sleepless:
        def state(self, _node: Node) -> NodeState:
            return NodeState.RUNNING

        def image(self, _node: Node) -> list[Path]:
            return []

        def flush(self, _node: Node) -> None:
            pass

        def hibernate(self, _nodes: Any) -> None:
            raise StepFailed("no space left")

    class Woken(Lab):
        starts = 0

        def start(self) -> bool:
            self.starts += 1
            return True

    lab = Woken(Home(tmp_path / "state", tmp_path / "cache"), "blue")
    lab.save(LabSettings(profile="p", release="r", topology="t", node_kind="vm", nodes=NODES))
    vars(lab)["provider"] = Sleepless()
    with pytest.raises(StepFailed, match="no space left"):
        freeze(lab, Store(tmp_path / "images"), "checkpoint", {"name": "x"}, memory=True)
    lab.journal.close()
    assert lab.starts == 1
