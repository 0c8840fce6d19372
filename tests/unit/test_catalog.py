"""The catalog: what there is to build is found, wherever it comes from, or refused with its place."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stacklab.blueprint import UpRequest, resolve
from stacklab.cli.main import app
from stacklab.errors import ModelError, UsageError
from stacklab.home import Home
from stacklab.lab.lab import Lab
from stacklab.lab.settings import nodes_of
from stacklab.model.catalog import Catalog
from stacklab.model.service import Ownership
from stacklab.model.topology import addresses
from tests.unit.catalogs import RELEASE, TOPOLOGY, catalog, write, write_catalog, write_profile, write_service

THIRD_PARTY = Path(__file__).parents[1] / "data" / "third-party"


def problems(folder: Path) -> list[str]:
    """What is wrong in a catalog, as path below the folder:line:column: message."""
    with pytest.raises(ModelError) as raised:
        Catalog.read([folder])
    assert raised.value.exit_code == 2
    return [str(problem).replace(f"{folder}/", "") for problem in raised.value.problems]


def shelf_of(catalog: Catalog) -> set[str]:
    return {*catalog.services, *catalog.profiles, *catalog.releases, *catalog.topologies}


def install_package(site: Path, module: str, *, entry_point: str) -> Path:
    """Lay out an installed Python package as pip does; the folder of its module."""
    write(
        site / f"{module}-1.0.dist-info" / "METADATA",
        f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n",
    )
    write(
        site / f"{module}-1.0.dist-info" / "entry_points.txt", f"[stacklab.profiles]\nacme = {entry_point}\n"
    )
    write(site / module / "__init__.py", "raise RuntimeError('reading data runs no code of the package')\n")
    return site / module


def test_a_catalog_holds_what_its_folders_hold(tmp_path: Path) -> None:
    found = catalog(tmp_path, {"mariadb": "", "keystone": "mariadb"}, "keystone")
    assert shelf_of(found) == {"mariadb", "keystone", "cloud", "epoxy", "all-in-one"}
    assert found.service("keystone").requires == ("mariadb",)
    assert found.service("keystone").folder == tmp_path / "services" / "keystone"


def test_the_shipped_catalog_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STACKLAB_PATH", raising=False)
    shipped = Catalog.load()
    for profile in ("openstack", "starter-kit"):
        graph = shipped.graph(profile)
        without = graph.layers[0].planned
        built = [service.name for service in graph.closure(1, without=without)]
        assert {"keystone", "glance", "placement", "neutron", "nova", "mariadb", "rabbitmq"} <= set(built)
    assert shipped.release("epoxy").suite == "trixie"
    assert addresses(shipped.topology("all-in-one").machines()) == {"controller": "10.20.0.11"}


@pytest.mark.parametrize("way", ["argument", "environment", "package"])
def test_a_service_from_outside_is_found(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STACKLAB_PATH", raising=False)
    path = []
    if way == "argument":
        path = [THIRD_PARTY]
    elif way == "environment":
        monkeypatch.setenv("STACKLAB_PATH", f":{THIRD_PARTY}:")
    else:
        module = install_package(tmp_path, "acme_clouds", entry_point="acme_clouds")
        for name in ("services", "greeting.yaml"):
            (module / name).symlink_to(THIRD_PARTY / name)
        monkeypatch.syspath_prepend(tmp_path)
    found = Catalog.load(path)
    greeting = found.graph("greeting")
    assert [service.name for service in greeting.closure(2)][-2:] == ["keystone", "motd"]
    assert "motd" in [service.name for service in found.graph("openstack").closure(1, with_=["motd"])]
    assert (found.service("motd").folder / "files/etc/systemd/system/motd.service.j2").is_file()


def test_a_package_may_keep_its_files_in_a_module_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install_package(tmp_path, "acme_deep", entry_point="acme_deep.clouds")
    write(module / "__init__.py", "")
    write_service(module / "clouds", "motd")
    monkeypatch.syspath_prepend(tmp_path)
    assert "motd" in Catalog.load().services
    assert "acme_deep.clouds" not in sys.modules


def test_a_package_whose_module_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_package(tmp_path, "acme_broken", entry_point="acme_gone.clouds")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"acme_broken offers profiles in the module acme_gone\.clouds"):
        Catalog.load()


def test_a_search_path_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"--path names the folder .*/none, which is not there"):
        Catalog.load([tmp_path / "none"])
    monkeypatch.setenv("STACKLAB_PATH", str(tmp_path / "gone"))
    with pytest.raises(UsageError, match=r"\$STACKLAB_PATH names the folder .*/gone, which is not there"):
        Catalog.load()


def test_a_folder_named_twice_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACKLAB_PATH", str(THIRD_PARTY))
    assert "motd" in Catalog.load([THIRD_PARTY / ".." / THIRD_PARTY.name]).services


def test_a_name_that_is_taken_is_refused_with_both_files(tmp_path: Path) -> None:
    first = write_service(tmp_path / "a", "motd")
    second = write_service(tmp_path / "b", "motd")
    with pytest.raises(ModelError) as raised:
        Catalog.read([tmp_path / "a", tmp_path / "b"])
    assert raised.value.detail == f"{second}:2:7: 'motd' is already defined in {first}"


def test_a_name_must_be_that_of_its_path(tmp_path: Path) -> None:
    write_catalog(tmp_path, {"keystone": ""}, "keystone")
    write(tmp_path / "services" / "motd" / "service.yaml", "version: 1\nname: modt\ntitle: A\n")
    write(tmp_path / "releases" / "dalmatian.yaml", RELEASE)
    assert problems(tmp_path) == [
        "releases/dalmatian.yaml:2:7: the name must be 'dalmatian', as the path says",
        "releases/epoxy.yaml:2:7: 'epoxy' is already defined in releases/dalmatian.yaml",
        "services/motd/service.yaml:2:7: the name must be 'motd', as the path says",
    ]


def test_a_folder_without_a_service_is_told_and_caches_of_python_are_not(tmp_path: Path) -> None:
    write_catalog(tmp_path, {"keystone": ""}, "keystone")
    (tmp_path / "services" / "__pycache__").mkdir()
    (tmp_path / "services" / "motd").mkdir()
    assert problems(tmp_path) == ["services/motd/service.yaml: is not there"]
    write(tmp_path / "services" / "motd" / "Service.yml", SERVICE)
    assert problems(tmp_path) == [
        "services/motd/service.yaml: is not there; is 'Service.yml' meant to be it?"
    ]


def test_problems_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    write_catalog(
        tmp_path, {"mariadb": "", "keystone": "mariadb", "a": "b", "b": "a"}, "keystone novaa [swift]"
    )
    write_service(tmp_path, "nova", requires=["keystne", "mariadb", "swift"])
    write(
        tmp_path / "services" / "glance" / "service.yaml",
        "version: 1\nname: glance\ntitle: G\nrequire: [a]\n",
    )
    write_service(tmp_path, "image-cache", requires=["glance"])
    write(tmp_path / "topologies" / "all-in-one.yaml", TOPOLOGY.replace("compute", "compute, printer"))
    write(
        tmp_path / "low.yaml",
        "version: 1\nname: low\ntitle: L\nrelease: epoxxy\nlayers: [{number: 1, title: A}]\nlayers: []\n",
    )
    write_profile(tmp_path, "keystone", "mariadb", name="upside-down")
    assert problems(tmp_path) == [
        "cloud.yaml:8:26: unknown service 'novaa', did you mean 'nova'?",
        "low.yaml:4:10: unknown release 'epoxxy', did you mean 'epoxy'?",
        "low.yaml:6:1: duplicate key 'layers', set in line 5",
        "services/a/service.yaml:4:12: a cycle: a requires b (services/a/service.yaml:4:12),"
        " b requires a (services/b/service.yaml:4:12)",
        "services/glance/service.yaml:4:1: unknown key 'require', did you mean 'requires'?",
        "services/nova/service.yaml:4:12: unknown service 'keystne', did you mean 'keystone'?",
        "services/nova/service.yaml:4:30: unknown service 'swift', which is planned, not built yet",
        "topologies/all-in-one.yaml:5:53: nodes.0.roles.2: expected 'controller', 'compute', 'network' or"
        " 'storage', got 'printer'",
        "upside-down.yaml:12:16: 'mariadb' stands in layer 2, above 'keystone' in layer 1 that requires it"
        " (services/keystone/service.yaml:4:12)",
    ]


def test_an_unknown_release_of_a_profile_is_refused(tmp_path: Path) -> None:
    write_catalog(tmp_path, {"keystone": ""}, "keystone")
    file = tmp_path / "cloud.yaml"
    write(file, file.read_text().replace("epoxy", "epoxi"))
    assert problems(tmp_path) == ["cloud.yaml:4:10: unknown release 'epoxi', did you mean 'epoxy'?"]


def test_an_unknown_name_is_answered_with_the_nearest_and_all(tmp_path: Path) -> None:
    found = catalog(tmp_path, {"keystone": "", "glance": "keystone"}, "glance")
    with pytest.raises(UsageError, match="unknown service 'keystoen', did you mean 'keystone'") as raised:
        found.service("keystoen")
    assert raised.value.hint == "known: glance, keystone"
    for pick in (found.profile, found.release, found.topology):
        with pytest.raises(UsageError, match="unknown"):
            pick("nothing")


SERVICE = "version: 1\nname: motd\ntitle: Message of the day\n"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("database: {names: [motd]}", "4:11: the database's password needs 'database' among the secrets"),
        ("identity: {user: motd}", "4:18: the user's password needs 'identity' among the secrets"),
        ("requires: [motd]", "4:12: a service cannot name itself in 'requires'"),
        ("uses: [nova, nova]", "4:14: 'nova' is listed twice"),
        ("checks: [{name: a}]", "4:10: a check has either 'run' or 'scenario'"),
        ("checks: [{name: a, run: b, scenario: agents}]", "4:10: a check has either 'run' or 'scenario'"),
        (
            "tasks: {after-start: /etc/x.yml}",
            "4:22: tasks.after-start: expected a path below the service's folder",
        ),
        ("tasks: {after-star: x.yml}", "4:9: tasks.after-star: expected 'before-configure',"),
        ("files: {special: {etc/x: {}}}", "4:19: files.special.etc/x: expected an absolute path on the node"),
        ("files: {special: {/etc/x: {mode: 755}}}", "4:34: files.special./etc/x.mode: should match pattern"),
        ("parts: {controller: {ports: [80, 99999]}}", "4:34: parts.controller.ports.1: should be less than"),
        (
            "initialise: [{name: A b, run: x}]",
            "4:21: initialise.0.name: expected a name of lowercase letters",
        ),
        ("initialise: [{name: a, run: ''}]", "4:29: initialise.0.run: should have at least 1 character"),
    ],
)
def test_what_cannot_be_meant_in_a_service_is_refused(tmp_path: Path, body: str, problem: str) -> None:
    write(tmp_path / "services" / "motd" / "service.yaml", f"{SERVICE}{body}\n")
    (found,) = problems(tmp_path)
    assert found.startswith(f"services/motd/service.yaml:{problem}")


def test_what_a_service_names_and_does_not_have_is_told_all_at_once(tmp_path: Path) -> None:
    write_service(tmp_path, "keystone")
    text = f"""{SERVICE}requires: [keystone]
uses: [swift]
secrets: [database]
files:
  special:
    /etc/motd.conff: {{mode: "0640"}}
    /etc/motd.conf: {{mode: "0640"}}
parts: {{controller: {{}}}}
initialise:
  - {{name: keys, run: "echo {{{{ contoller }}}}"}}
  - {{name: keys, run: "echo {{{{ secrets.motd.databse }}}} {{{{ secrets.swift.database }}}}"}}
  - name: long
    on: compute
    run: |
      echo a
      echo {{{{ secrets.keyston.admin }}}} {{% if
      echo b
checks:
  - {{name: greets, run: "true {{{{ }}}}"}}
  - {{name: greets, run: "true {{{{ services.motd }}}} {{{{ maybe | default('') }}}}"}}
  - {{name: plays, scenario: instanc}}
"""
    file = tmp_path / "services" / "motd" / "service.yaml"
    write(file, text)
    write(file.parent / "files/etc/motd.conf.j2", "a\n{% include 'openstak.ini.j2' %}\n{{ lb.name }}\n")
    (found,) = problems(tmp_path)
    assert found.startswith("services/motd/service.yaml:24:29: checks.2.scenario: expected 'agents', ")
    assert found.endswith("got 'instanc', did you mean 'instance'?")
    write(file, text.replace("instanc}", "instance}"))
    assert problems(tmp_path) == [
        "services/motd/files/etc/motd.conf.j2:2:1: there is no fragment 'openstak.ini.j2',"
        " did you mean 'openstack.ini.j2'?",
        "services/motd/files/etc/motd.conf.j2:3:1: unknown word 'lb', did you mean 'lab'?",
        "services/motd/service.yaml:9:5: no file of the service becomes /etc/motd.conff,"
        " did you mean '/etc/motd.conf'?",
        "services/motd/service.yaml:13:23: unknown word 'contoller', did you mean 'controller'?",
        "services/motd/service.yaml:14:12: 'keys' is named already at services/motd/service.yaml:13:12",
        "services/motd/service.yaml:14:23: 'motd' has no secret 'databse', did you mean 'database'?",
        "services/motd/service.yaml:16:9: nothing of the service runs on the role 'compute':"
        " add it to 'parts'",
        "services/motd/service.yaml:20:1: not a Jinja template: expected token 'end of statement block',"
        " got 'b'",
        "services/motd/service.yaml:22:25: not a Jinja template: Expected an expression, got 'end of print"
        " statement'",
        "services/motd/service.yaml:23:12: 'greets' is named already at services/motd/service.yaml:22:12",
    ]


@pytest.mark.parametrize(
    ("named", "words", "meant"),
    [
        ("mine/services", "holds services itself", "mine"),
        ("mine/services/motd", "is the folder of one service", "mine"),
        (".", "holds no services/NAME/service.yaml and no profile", "mine"),
        ("empty", "holds no services/NAME/service.yaml and no profile", None),
    ],
)
def test_a_search_path_one_folder_off_is_told_with_the_one_that_is_meant(
    named: str, words: str, meant: str | None, tmp_path: Path
) -> None:
    write_service(tmp_path / "mine", "motd")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=words) as raised:
        Catalog.load([tmp_path / named])
    assert raised.value.hint.endswith(f": {tmp_path / meant}" if meant else "what it has to hold")


def test_a_task_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    service = write(
        tmp_path / "services/motd/service.yaml", f"{SERVICE}tasks: {{after-start: tasks/x.yml}}\n"
    )
    assert problems(tmp_path) == [
        "services/motd/service.yaml:4:22: there is no file services/motd/tasks/x.yml"
    ]
    write(service.parent / "tasks/x.yml", "[]")
    assert Catalog.read([tmp_path]).service("motd").tasks == {"after-start": "tasks/x.yml"}


def test_files_belong_to_root_unless_the_service_says_otherwise(tmp_path: Path) -> None:
    body = "files: {group: motd, special: {/etc/motd.sh: {mode: '0755'}}}\n"
    write(tmp_path / "services/motd/service.yaml", SERVICE + body)
    write(tmp_path / "services/motd/files/etc/motd.sh.j2", "")
    write(tmp_path / "services/plain/service.yaml", SERVICE.replace("motd", "plain"))
    found = Catalog.read([tmp_path])
    assert found.service("plain").files.ownership("/etc/x") == Ownership(
        owner="root", group="root", mode="0644"
    )
    files = found.service("motd").files
    assert files.ownership("/etc/x") == Ownership(owner="root", group="motd", mode="0640")
    assert files.ownership("/etc/motd.sh") == Ownership(owner="root", group="root", mode="0755")


def test_commands_run_as_root_on_the_controller_unless_they_say_otherwise(tmp_path: Path) -> None:
    body = (
        "parts: {compute: {}}\ninitialise: [{name: a, run: x}]\n"
        "finalise: [{name: b, run: y, as: motd, on: compute}]\n"
    )
    write(tmp_path / "services/motd/service.yaml", SERVICE + body)
    commands = [*Catalog.read([tmp_path]).service("motd").commands()]
    assert [(each.name, each.user, each.on) for each in commands] == [
        ("a", "root", "controller"),
        ("b", "motd", "compute"),
    ]


def test_the_controller_has_the_first_address_and_the_others_follow(tmp_path: Path) -> None:
    nodes = [("rack-a", "[compute]"), ("brain", "[controller]"), ("rack-b", "[compute, storage]")]
    text = "version: 1\nname: three\ntitle: Three\nnodes:\n" + "".join(
        f"  - {{name: {name}, roles: {roles}, memory: 4 GiB, cpus: 1, disk: 10 GiB}}\n"
        for name, roles in nodes
    )
    write(tmp_path / "topologies" / "three.yaml", text)
    three = Catalog.read([tmp_path]).topology("three")
    assert addresses(three.machines()) == {
        "brain": "10.20.0.11",
        "rack-a": "10.20.0.12",
        "rack-b": "10.20.0.13",
    }
    assert three.controller.memory == 4096
    assert three.computes is None


def test_alike_nodes_are_counted(tmp_path: Path) -> None:
    write_topology(
        tmp_path, "{name: brain, roles: [controller]", "{name: rack, count: 2, roles: [compute, storage]"
    )
    counted = Catalog.read([tmp_path]).topology("odd")
    assert counted.computes == 2
    assert [node.name for node in counted.machines()] == ["brain", "rack-1", "rack-2"]
    assert [node.name for node in counted.machines(3)] == ["brain", "rack-1", "rack-2", "rack-3"]
    assert addresses(counted.machines(1)) == {"brain": "10.20.0.11", "rack-1": "10.20.0.12"}
    assert [counted.size(), counted.size(3), counted.size(10**12)] == [3, 4, 10**12 + 1]


def test_too_many_nodes_are_refused_without_a_list_of_them(tmp_path: Path) -> None:
    write_topology(
        tmp_path, "{name: brain, roles: [controller]", "{name: rack, count: 1000000000000, roles: [compute]"
    )
    with pytest.raises(ModelError) as raised:
        Catalog.read([tmp_path])
    assert "1000000000001 nodes are more than the 80" in raised.value.detail


@pytest.mark.parametrize(
    ("nodes", "problem"),
    [
        ("[]", "4:8: nodes: expected at least one"),
        (
            "[{name: a, roles: [compute], memory: 1 GiB, cpus: 1, disk: 1 GiB}]",
            "4:8: no node has the role controller",
        ),
        (
            "[{name: a, roles: [controller], memory: 1 GiB, cpus: 1, disk: 1 GiB},"
            " {name: a, roles: [compute], memory: 1 GiB, cpus: 1, disk: 1 GiB}]",
            "4:85: a second node is called 'a'",
        ),
        (
            "[{name: a, roles: [controller], memory: 1 GiB, cpus: 1, disk: 1 GiB},"
            " {name: b, roles: [compute], memory: 1 GiB, cpus: 1, disk: 1 GiB, count: 80}]",
            "4:8: 81 nodes are more than the 80 that a lab can have",
        ),
    ],
)
def test_a_topology_that_cannot_be_built_is_refused(tmp_path: Path, nodes: str, problem: str) -> None:
    write(tmp_path / "topologies" / "odd.yaml", f"version: 1\nname: odd\ntitle: Odd\nnodes: {nodes}\n")
    (found,) = problems(tmp_path)
    assert found.startswith(f"topologies/odd.yaml:{problem}")


def test_all_that_is_wrong_with_the_nodes_is_told_at_once(tmp_path: Path) -> None:
    write_topology(
        tmp_path,
        "{name: a, count: 2, roles: [controller]",
        "{name: b, roles: [compute, controller]",
        "{name: c, count: 2, roles: [compute]",
        "{name: c-2, count: 1, roles: [compute]",
        "{name: c-2, roles: [storage]",
    )
    assert problems(tmp_path) == [
        "topologies/odd.yaml:5:22: a lab has one controller, so it cannot be counted",
        "topologies/odd.yaml:6:32: a second controller: a lab has one, and 'a' is it",
        "topologies/odd.yaml:8:24: only one group of compute nodes can be counted",
        "topologies/odd.yaml:9:12: a second node is called 'c-2'",
    ]


def test_nodes_of_two_kinds_are_no_lab(tmp_path: Path) -> None:
    write_topology(
        tmp_path,
        "{name: a, kind: lxc, roles: [controller]",
        "{name: b, roles: [storage]",
        "{name: c, kind: vm, roles: [compute]",
    )
    assert problems(tmp_path) == [
        "topologies/odd.yaml:7:21: a node of kind 'vm' beside one of kind 'lxc': a lab has one"
    ]


def write_topology(folder: Path, *nodes: str) -> None:
    """Write a topology `odd`; its first node stands in line 5. nodes: the beginnings of theirs."""
    lines = "".join(f"  - {node}, memory: 1 GiB, cpus: 1, disk: 1 GiB}}\n" for node in nodes)
    write(folder / "topologies" / "odd.yaml", f"version: 1\nname: odd\ntitle: Odd\nnodes:\n{lines}")


def test_profiles_count_their_layers_and_list_a_service_once(tmp_path: Path) -> None:
    write_catalog(tmp_path, {"keystone": ""}, "keystone", "[swift] [keystone]")
    assert problems(tmp_path) == ["cloud.yaml:13:22: 'keystone' is already listed at cloud.yaml:8:16"]
    file = write_profile(tmp_path, "keystone", "[swift]")
    write(file, file.read_text().replace("number: 2", "number: 3"))
    assert problems(tmp_path) == ["cloud.yaml:10:13: layers count from 1 in order: expected 2"]


def test_the_services_of_a_profile_are_listed_with_their_layers() -> None:
    done = CliRunner().invoke(app, ["services", "--path", str(THIRD_PARTY), "--output", "json"])
    assert done.exit_code == 0
    layers = {row["name"]: row["layer"] for row in json.loads(done.stdout)}
    assert layers["keystone"] == 1
    assert layers["motd"] is None
    table = CliRunner().invoke(app, ["services", "--path", str(THIRD_PARTY), "--profile", "greeting"]).stdout
    assert [line.split()[:2] for line in table.splitlines() if "motd" in line] == [["2", "motd"]]


def test_profiles_are_listed_with_what_is_built_and_what_is_planned() -> None:
    done = CliRunner().invoke(app, ["profiles", "--output", "json"])
    assert done.exit_code == 0
    profiles = {row["profile"]: row for row in json.loads(done.stdout)}
    assert "keystone" in profiles["openstack"]["layers"][0]["services"]
    assert "heat" in profiles["openstack"]["layers"][3]["planned"]
    assert "starter-kit" in CliRunner().invoke(app, ["profiles"]).stdout


def test_a_typo_ends_with_exit_code_2_and_its_place(tmp_path: Path) -> None:
    write_service(tmp_path, "motd", requires=["keystoen"])
    done = CliRunner().invoke(app, ["services", "--path", str(tmp_path)])
    assert done.exit_code == 2
    assert (
        f"{tmp_path}/services/motd/service.yaml:4:12: unknown service 'keystoen', did you mean" in done.stderr
    )


HOSTS = """\
version: 1
name: rack
title: Two machines of a rack
provider: {cidr: 192.0.2.0/24, gateway: 192.0.2.1, start: 192.0.2.100, end: 192.0.2.200}
nodes:
  - name: brain
    kind: host
    address: 198.51.100.11
    user: admin
    key: keys/rack
    roles: [controller]
  - name: muscle
    kind: host
    address: 198.51.100.12
    port: 2222
    roles: [compute, network]
    interfaces: {provider: eno2}
"""


def test_a_topology_lists_hosts_in_a_file_of_its_own(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.yaml", HOSTS)
    rack = Catalog.read([]).topology(str(file))
    brain, muscle = nodes_of(rack, "host")
    assert (brain.kind, brain.address, brain.port, brain.user) == ("host", "198.51.100.11", 22, "admin")
    assert brain.key == str(tmp_path / "keys" / "rack")
    assert (muscle.port, muscle.user, muscle.key) == (2222, "root", "")
    assert (brain.provider_interface, muscle.provider_interface) == ("", "eno2")
    assert rack.provider is not None and rack.provider.network().prefix == 24


def test_all_that_is_wrong_with_hosts_is_told_at_once(tmp_path: Path) -> None:
    broken = (
        HOSTS.replace("198.51.100.12", "198.51.100.11")
        .replace("[compute, network]", "[compute, printer, controller]")
        .replace("{provider: eno2}", "{}")
        .replace("start: 192.0.2.100", "start: 192.0.3.100")
        .replace("port: 2222", "port: 99999")
    )
    file = write(tmp_path / "mine.yaml", broken + "  - {name: box, kind: lxc, roles: [compute], user: me}\n")
    with pytest.raises(ModelError) as error:
        Catalog.read([]).topology(str(file))
    told = [f"{each.line}:{each.column}: {each.message}" for each in error.value.problems]
    assert told == [
        "4:59: 192.0.3.100 is not in the network 192.0.2.0/24",
        "7:11: hosts and nodes that stacklab makes cannot be in one lab: its network is closed to hosts",
        "14:14: the address 198.51.100.11 is that of node 'brain'",
        "15:11: nodes.1.port: should be less than or equal to 65535, got '99999'",
        "16:22: nodes.1.roles.1: expected 'controller', 'compute', 'network' or 'storage', got 'printer'",
        "16:31: a second controller: a lab has one, and 'brain' is it",
        "17:17: the key 'interfaces.provider' is missing in nodes.1: which one carries the provider network?",
        "18:5: the key 'cpus' is missing in nodes.2",
        "18:5: the key 'disk' is missing in nodes.2",
        "18:5: the key 'memory' is missing in nodes.2",
        "18:52: the key 'user' is for nodes of kind host",
    ]


@pytest.mark.parametrize(
    ("topology", "kind", "problem"),
    [
        ("all-in-one", "host", "the topology 'all-in-one' lists no hosts"),
        ("mine.yaml", "lxc", "the topology 'rack' lists hosts, which cannot be 'lxc'"),
        ("other.yaml", None, "1 problem in the model"),
    ],
)
def test_the_kind_of_nodes_and_the_topology_agree(
    tmp_path: Path, topology: str, kind: str | None, problem: str
) -> None:
    write(tmp_path / "mine.yaml", HOSTS)
    asked = str(tmp_path / topology) if topology.endswith(".yaml") else topology
    with pytest.raises(UsageError, match=problem):
        resolve(Lab(Home(tmp_path, tmp_path), "one"), UpRequest(topology=asked, node_kind=kind))
