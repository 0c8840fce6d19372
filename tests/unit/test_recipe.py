"""The recipe of a layer's image: what invalidates it, and what does not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stacklab import recipe as recipe_module
from stacklab.blueprint import Blueprint, UpRequest, resolve
from stacklab.home import Home
from stacklab.images import store as store_module
from stacklab.images.store import Store, key_of
from stacklab.lab.lab import Lab
from stacklab.lab.secrets import placeholder_secrets
from stacklab.recipe import LAYER, changes, deepest, recipe, title_of
from stacklab.render import HostFacts, Renderer
from tests.unit.catalogs import write, write_profile

HOST = HostFacts(kvm=False, openvswitch=False)
SERVICE = """\
version: 1
name: {name}
title: The {name}
requires: [{requires}]
secrets: [token]
parts:
  controller: {{packages: [{name}-server], units: [{name}]}}
"""


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """A profile of two layers: `lower`, and on it `upper`; each has a file with a name and a password."""
    for name, requires in (("lower", ""), ("upper", "lower")):
        folder = tmp_path / "catalog" / "services" / name
        write(folder / "service.yaml", SERVICE.format(name=name, requires=requires))
        text = f"host {{{{ lab.name }}}} token {{{{ secrets.{name}.token }}}} kvm {{{{ host.kvm }}}}\n"
        write(folder / "files" / "etc" / f"{name}.conf.j2", text)
    write_profile(tmp_path / "catalog", "lower", "upper", name="two")
    return tmp_path / "catalog"


def blueprint(catalog: Path, lab: str = "blue", **request: Any) -> Blueprint:
    home = Home(catalog.parent / "state", catalog.parent / "cache")
    wanted = UpRequest(lab=lab, layer=2, profile="two", path=(catalog,), **request)
    return resolve(Lab(home, lab), wanted)


def keys(of: Blueprint) -> list[str]:
    """The keys of the images of layers 1 and 2."""
    return [key_of(recipe(of, layer, HOST, {})) for layer in (1, 2)]


def rendered_key(of: Blueprint) -> str:
    """The key by which `up` knows that layer 2 stands as it should."""
    secrets = placeholder_secrets(Path("/nonexistent"), of.services)
    return Renderer("blue", of, secrets, HOST).layer(2).applied_key


def append(file: Path, text: str) -> None:
    file.write_text(file.read_text() + text)


def test_two_labs_share_a_recipe_whatever_their_names_and_passwords(catalog: Path) -> None:
    first, second = blueprint(catalog, "blue"), blueprint(catalog, "green")
    state = catalog.parent / "state" / "labs" / "green"
    write(state / "secrets.yaml", "lower: {token: '1234'}\n")
    assert keys(first) == keys(second)


def test_layers_have_recipes_of_their_own(catalog: Path) -> None:
    assert len(set(keys(blueprint(catalog)))) == 2


@pytest.mark.parametrize("file", ["files/etc/upper.conf.j2", "service.yaml"])
def test_a_change_in_a_service_of_layer_2_leaves_layer_1_valid(catalog: Path, file: str) -> None:
    before = keys(blueprint(catalog))
    words = {"service.yaml": "initialise: [{name: more, run: 'true'}]\n"}
    append(catalog / "services" / "upper" / file, words.get(file, "more\n"))
    after = keys(blueprint(catalog))
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_a_change_in_a_service_of_layer_1_invalidates_all_above_it(catalog: Path) -> None:
    before = keys(blueprint(catalog))
    append(catalog / "services" / "lower" / "files" / "etc" / "lower.conf.j2", "more\n")
    after = keys(blueprint(catalog))
    assert after[0] != before[0]
    assert after[1] != before[1]


@pytest.mark.parametrize("file", ["extra.yml", "more/included.yml"])
def test_a_change_in_a_task_file_is_one_of_the_layer(catalog: Path, file: str) -> None:
    """Ansible reads these when it gets there: nothing of them is in what is rendered."""
    folder = catalog / "services" / "upper"
    append(folder / "service.yaml", "tasks: {after-configure: tasks/extra.yml}\n")
    for name in ("extra.yml", "more/included.yml"):
        write(folder / "tasks" / name, "- ansible.builtin.command: 'true'\n")
    before, applied = keys(blueprint(catalog)), rendered_key(blueprint(catalog))
    append(folder / "tasks" / file, "# once more\n")
    after = keys(blueprint(catalog))
    assert after[0] == before[0]
    assert after[1] != before[1]
    assert rendered_key(blueprint(catalog)) != applied  # by which a lab that stands on it knows, too


def test_words_that_change_nothing_on_a_node_do_not_matter(catalog: Path) -> None:
    before = keys(blueprint(catalog))
    file = catalog / "services" / "lower" / "service.yaml"
    file.write_text(file.read_text().replace("title: The lower", "title: Another title"))
    append(catalog / "services" / "lower" / "files" / "etc" / "lower.conf.j2", "{# a remark #}")
    assert keys(blueprint(catalog)) == before


def test_packages_nodes_and_kvm_matter(catalog: Path) -> None:
    plan = blueprint(catalog)
    before = recipe(plan, 1, HOST, {})
    file = catalog / "services" / "lower" / "service.yaml"
    file.write_text(file.read_text().replace("lower-server", "lower-server, tools"))
    assert "packages controller changed" in changes(before, recipe(blueprint(catalog), 1, HOST, {}))

    (node,) = plan.nodes
    moved = replace(
        plan, settings=plan.settings.model_copy(update={"nodes": (replace(node, address="10.20.0.99"),)})
    )
    assert "nodes changed" in changes(before, recipe(moved, 1, HOST, {}))

    with_kvm = recipe(plan, 1, replace(HOST, kvm=True), {})
    assert "files controller /etc/lower.conf changed" in changes(before, with_kvm)


def test_stacklabs_own_lifecycle_matters(
    catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = recipe(blueprint(catalog), 1, HOST, {})
    monkeypatch.setattr(recipe_module, "LIFECYCLE", ("playbooks",))
    assert list(changes(before, recipe(blueprint(catalog), 1, HOST, {}))) == ["lifecycle changed"]


def test_titles_tell_labs_of_other_services_apart(catalog: Path) -> None:
    plain = blueprint(catalog)
    assert title_of(plain, 1) == "layer 1 of two"
    more = {"with_services": {"hello": 1, "motd": 2}, "without_services": ("swift",)}
    other = replace(plain, settings=plain.settings.model_copy(update=more))
    assert title_of(other, 1) == "layer 1 of two with hello without swift"
    assert title_of(other, 2) == "layer 2 of two with hello, motd without swift"


def test_changes_are_told_in_words() -> None:
    old = {"layer": 1, "files": {"controller": {"/a": "1", "/b": "2"}}, "packages": {"controller": ["x"]}}
    new = {"layer": 1, "files": {"controller": {"/b": "3", "/c": "4"}}, "packages": {"controller": ["x"]}}
    assert list(changes(old, old)) == []
    assert list(changes(old, new)) == [
        "files controller /a is gone",
        "files controller /b changed",
        "files controller /c is new",
    ]


def test_a_lab_starts_from_the_deepest_image_that_matches(
    catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "seal_in_background", lambda folder: None)
    store = Store(tmp_path / "images")
    plan = blueprint(catalog)
    assert deepest(store, plan, HOST, {}) is None

    def build(folder: Path) -> None:
        (folder / "nodes" / "controller").mkdir(parents=True)

    images = {
        layer: store.ensure(LAYER, recipe(plan, layer, HOST, {}), build, title=f"layer {layer}")
        for layer in (1, 2)
    }
    assert deepest(store, plan, HOST, {}) == (2, images[2])
    append(catalog / "services" / "upper" / "files" / "etc" / "upper.conf.j2", "more\n")
    assert deepest(store, blueprint(catalog), HOST, {}) == (1, images[1])
    append(catalog / "services" / "lower" / "files" / "etc" / "lower.conf.j2", "more\n")
    assert deepest(store, blueprint(catalog), HOST, {}) is None


def test_an_image_file_that_is_made_anew_is_another_input(catalog: Path, tmp_path: Path) -> None:
    image = "resources: {images: [{name: guest, file: guest.img, format: raw}]}\n"
    append(catalog / "services" / "upper" / "service.yaml", image)
    file = tmp_path / "guest.img"
    plan, found = blueprint(catalog), set()
    for content in ("", "first", "second"):  # before it is built, and twice after that
        if content:
            file.write_text(content)
        found.add(key_of(recipe(plan, 2, HOST, {"guest.img": file})))
    assert len(found) == 3


def test_only_virtual_machines_depend_on_what_their_disk_is_made_of(catalog: Path) -> None:
    lxc, vm = (blueprint(catalog, node_kind=kind) for kind in ("lxc", "vm"))
    assert list(changes(recipe(lxc, 1, HOST, {}), recipe(vm, 1, HOST, {}))) == ["disk is new"]


def test_an_emulated_node_has_more_time_for_each_step_and_is_otherwise_rendered_alike(catalog: Path) -> None:
    patient = replace(HOST, patience=3.0)
    found = list(changes(recipe(blueprint(catalog), 1, HOST, {}), recipe(blueprint(catalog), 1, patient, {})))
    assert found == ["files controller /var/lib/stacklab/steps.json changed"]
