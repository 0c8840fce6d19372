"""Labs of several nodes: which there are, what runs on each, and in which order."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from stacklab.blueprint import Blueprint, UpRequest, resolve
from stacklab.check.api import Api
from stacklab.check.cloud import Cloud
from stacklab.check.neighbours import check_neighbours
from stacklab.errors import ModelError, UsageError
from stacklab.home import Home
from stacklab.images.store import key_of
from stacklab.lab.lab import Lab
from stacklab.lab.secrets import placeholder_secrets
from stacklab.recipe import first_packages, recipe
from stacklab.render import HostFacts, Rendered, Renderer
from tests.unit.catalogs import write, write_profile

HOST = HostFacts(kvm=False, openvswitch=False)
BASE = """\
version: 1
name: base
title: Base
parts:
  controller: {packages: [base-server], units: [base], ports: [5000]}
"""
WORK = """\
version: 1
name: work
title: Work
requires: [base]
parts:
  controller: {packages: [work-api], units: [work-api], ports: [8774]}
  compute: {packages: [worker], units: [worker]}
initialise:
  - {name: account, run: make-account}
  - {name: scratch, run: "make-scratch {{ node.name }}", on: compute}
finalise:
  - {name: count, run: "count {{ nodes_by_role.compute | length }}"}
  - {name: greet, run: greet, on: compute}
"""
FIXED = """\
version: 1
name: pair
title: A pair
nodes:
  - {name: brain, roles: [controller], memory: 1 GiB, cpus: 1, disk: 1 GiB}
  - {name: disks, roles: [storage], memory: 1 GiB, cpus: 1, disk: 1 GiB}
"""


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    folder = tmp_path / "catalog"
    write(folder / "services" / "base" / "service.yaml", BASE)
    write(folder / "services" / "work" / "service.yaml", WORK)
    write(folder / "services" / "work" / "files" / "etc" / "work.conf.j2", "I am {{ node.address }}\n")
    write(folder / "topologies" / "pair.yaml", FIXED)
    write_profile(folder, "base work", name="one")
    return folder


def lab_of(catalog: Path) -> Lab:
    return Lab(Home(catalog.parent / "state", catalog.parent / "cache"), "blue")


def blueprint(catalog: Path, **request: Any) -> Blueprint:
    return resolve(lab_of(catalog), UpRequest(lab="blue", profile="one", path=(catalog,), **request))


def rendered(of: Blueprint) -> Rendered:
    return Renderer("blue", of, {}, HOST).layer(1)


def test_computes_are_as_many_as_asked_for(catalog: Path) -> None:
    nodes = blueprint(catalog, computes=3).nodes
    assert [(node.name, node.address) for node in nodes] == [
        ("controller", "10.20.0.11"),
        ("compute-1", "10.20.0.12"),
        ("compute-2", "10.20.0.13"),
        ("compute-3", "10.20.0.14"),
    ]
    assert [node.name for node in blueprint(catalog, topology="controller-computes").nodes][1:] == [
        "compute-1",
        "compute-2",
    ]
    assert [node.name for node in blueprint(catalog).nodes] == ["controller"]


def test_another_number_of_computes_is_another_image(catalog: Path) -> None:
    keys = {key_of(recipe(blueprint(catalog, computes=count), 1, HOST, {})) for count in (1, 2)}
    assert len(keys) == 2


def test_each_node_has_what_its_roles_ask_for_and_all_start_from_one_image(catalog: Path) -> None:
    several = blueprint(catalog, computes=1)
    packages = {node.name: several.packages(several.services, node) for node in several.nodes}
    assert packages == {"controller": ("base-server", "work-api"), "compute-1": ("worker",)}
    assert first_packages(several) == ["base-server", "work-api", "worker"]
    files = rendered(several).files
    assert files["compute-1"]["/etc/work.conf"].content == b"I am 10.20.0.12\n"


def test_what_is_for_other_nodes_does_not_start_though_it_is_installed(catalog: Path) -> None:
    files = rendered(blueprint(catalog, computes=1)).files
    kept = {node: [path for path in tree if "elsewhere" in path] for node, tree in files.items()}
    assert kept == {
        "controller": ["/etc/systemd/system/worker.service.d/stacklab-elsewhere.conf"],
        "compute-1": [
            "/etc/systemd/system/base.service.d/stacklab-elsewhere.conf",
            "/etc/systemd/system/work-api.service.d/stacklab-elsewhere.conf",
        ],
    }


def test_commands_run_on_the_nodes_of_their_role(catalog: Path) -> None:
    layer = rendered(blueprint(catalog, computes=2))
    steps = {node: [step.id for step in steps] for node, steps in layer.steps.items()}
    assert "work/init.account" in steps["controller"]
    assert "work/init.scratch" not in steps["controller"]
    for node in ("compute-1", "compute-2"):
        assert steps[node] == ["work/init.scratch", "work/compute"]
        scratch, worker = layer.steps[node]
        assert scratch.run == f"make-scratch {node}"
        assert worker.after == ("work/init.scratch",)
    last = {node: [(step.id, step.run) for step in steps] for node, steps in layer.final.items()}
    assert last == {
        "controller": [("work/final.count", "count 2")],
        "compute-1": [("work/final.greet", "greet")],
        "compute-2": [("work/final.greet", "greet")],
    }


def test_the_controller_comes_first_and_what_needs_all_nodes_last(catalog: Path) -> None:
    plays = yaml.safe_load(rendered(blueprint(catalog, computes=2)).playbook)
    assert [play["hosts"] for play in plays] == [
        "all",
        "controller",
        "compute-1:compute-2",
        "controller:compute-1:compute-2",
    ]


def test_computes_need_a_topology_that_leaves_them_open(catalog: Path) -> None:
    with pytest.raises(UsageError, match="the topology 'all-in-one' says which nodes there are"):
        blueprint(catalog, topology="all-in-one", computes=2)
    for many in (80, 10**12):
        with pytest.raises(UsageError, match="a lab can have 80 nodes"):
            blueprint(catalog, computes=many)


def test_a_lab_keeps_its_computes(catalog: Path) -> None:
    settings = blueprint(catalog, computes=1).settings
    lab_of(catalog).save(settings)
    assert blueprint(catalog, computes=1).nodes == settings.nodes
    with pytest.raises(UsageError, match="lab 'blue' has one compute node, which cannot become 2"):
        blueprint(catalog, computes=2)


@pytest.mark.parametrize("kind", ["lxc", "vm"])
def test_the_kind_that_a_topology_names_is_that_of_the_lab(catalog: Path, kind: str) -> None:
    named = FIXED.replace("roles: [controller]", f"kind: {kind}, roles: [controller, compute]")
    write(catalog / "topologies" / "pair.yaml", named)
    for asked in (None, "auto", kind):
        of = blueprint(catalog, topology="pair", node_kind=asked)
        assert of.settings.node_kind == kind
        assert [node.kind for node in of.nodes] == [kind, kind]
    other = {"lxc": "vm", "vm": "lxc"}[kind]
    with pytest.raises(UsageError, match=f"lists nodes of kind '{kind}', which cannot be '{other}'"):
        blueprint(catalog, topology="pair", node_kind=other)


def test_a_role_that_no_node_has_is_missed_before_anything_is_built(catalog: Path) -> None:
    with pytest.raises(ModelError) as raised:
        blueprint(catalog, topology="pair")
    assert [str(problem) for problem in raised.value.problems] == [
        f"{catalog}/topologies/pair.yaml:5:3: no node has the role 'compute', "
        "which is where parts of work run"
    ]


def test_one_compute_node_has_no_neighbours_to_check(catalog: Path) -> None:
    alone = blueprint(catalog, computes=1)
    cloud = Cloud(lab_of(catalog), alone, 1, {}, Api({}))
    assert list(check_neighbours(cloud, alone.services[1], "neighbours")) == []


def switches(computes: int | None, *, kernel: bool) -> dict[str, str]:
    """How the switch of each node that has one is started, in a lab of layer 1."""
    home = Home(Path("/nonexistent/state"), Path("/nonexistent/cache"))
    several = resolve(Lab(home, "blue"), UpRequest(lab="blue", computes=computes))
    secrets = placeholder_secrets(Path("/nonexistent"), several.services)
    layer = Renderer("blue", several, secrets, replace(HOST, openvswitch=kernel)).layer(1)
    path = "/etc/systemd/system/ovs-vswitchd.service.d/stacklab.conf"
    names = [node.name for node in several.nodes if "compute" in node.roles]
    return {name: layer.files[name][path].content.decode() for name in names}


def test_tunnels_between_containers_have_addresses_of_their_own() -> None:
    apart = switches(2, kernel=False)["compute-2"]
    in_kernel = switches(2, kernel=True)["compute-2"]
    assert "ovn-encap-ip=10.40.0.13 " in apart
    assert "ip address replace 10.40.0.13/24 dev br-provider" in apart
    assert "ovn-encap-ip=10.20.0.13 " in in_kernel
    for without in (in_kernel, switches(None, kernel=False)["controller"]):
        assert "10.40.0." not in without


@pytest.mark.parametrize(("computes", "gateways"), [(None, ["controller"]), (2, ["compute-1", "compute-2"])])
def test_routers_have_a_gateway_on_nodes_with_a_switch(computes: int | None, gateways: list[str]) -> None:
    started = switches(computes, kernel=False)
    assert [name for name, text in started.items() if "enable-chassis-as-gw" in text] == gateways


@pytest.mark.parametrize("kernel", [True, False])
def test_only_the_kernels_switch_asks_for_a_module(kernel: bool) -> None:
    """A container has no modules, and ovs-ctl does not start without, where the kernel knows of any."""
    (started,) = switches(None, kernel=kernel).values()
    assert ("/no-modules:" in started) is not kernel
