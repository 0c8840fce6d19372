"""What is asked for against a lab that stands: services that come and go, and the layers they keep."""

from pathlib import Path

import pytest

from stacklab.blueprint import Blueprint, UpRequest, on_containers, resolve, resolve_climb
from stacklab.cli.request import service_names
from stacklab.errors import ModelError, UsageError
from stacklab.home import Home
from stacklab.lab.lab import Lab
from stacklab.lab.settings import LabSettings
from stacklab.model.catalog import Catalog

PLANNED = Catalog.load().profile("openstack").layers[1].planned


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """A lab on layer 1, to which Barbican was added there."""
    lab = Lab(Home(tmp_path / "state", tmp_path / "cache"), "blue")
    fresh = resolve(lab, UpRequest(lab="blue", layer=1, with_services=("barbican",)))
    lab.save(fresh.settings.model_copy(update={"layer": 1}))
    return lab


def names(blueprint: Blueprint) -> list[set[str]]:
    return [{service.name for service in cut} for cut in blueprint.cuts]


def up(lab: Lab, layer: int | None = None, *, with_: str = "", without: str = "") -> Blueprint:
    request = UpRequest(
        lab="blue",
        layer=layer,
        with_services=service_names([with_]),
        without_services=service_names([without, *PLANNED]),
    )
    blueprint = resolve(lab, request)
    lab.save(blueprint.settings)
    return blueprint


def test_what_was_added_to_a_layer_stays_in_it(lab: Lab) -> None:
    climbed = up(lab, 2, with_="glance-on-swift")
    assert lab.settings.with_services == {"glance-on-swift": 2, "barbican": 1}
    assert "barbican" in names(climbed)[0]
    assert {"glance-on-swift", "swift"} <= names(climbed)[1]
    assert names(up(lab, with_="barbican"))[0] == names(climbed)[0]


def test_a_service_that_was_left_out_comes_by_with_and_goes_by_without(lab: Lab) -> None:
    assert not {"swift", "designate"} & names(up(lab, 2, without="swift, designate"))[1]
    assert "swift" in names(up(lab, 2, with_="swift"))[1]
    assert set(lab.settings.without_services) == {*PLANNED, "designate"}
    gone = up(lab, 2, without="barbican")
    assert "barbican" not in names(gone)[0] | names(gone)[1]


def test_asked_for_and_left_out_at_once_is_refused_on_a_standing_lab_too(lab: Lab) -> None:
    up(lab, 1, with_="swift")
    with pytest.raises(UsageError, match="'swift' is asked for with --with and with --without"):
        up(lab, with_="swift", without="swift")
    with pytest.raises(UsageError, match="'barbican' is asked for with --with and with --without"):
        up(lab, with_="barbican", without="barbican")


def test_what_was_added_to_a_layer_above_can_be_added_below_after_a_step_down(lab: Lab) -> None:
    settings = up(lab, 2, with_="cinder-backup").settings
    lab.save(settings.model_copy(update={"layer": 1, "target": 1}))
    assert "cinder-backup" in names(up(lab, with_="cinder-backup"))[0]


def test_up_goes_on_to_the_layer_that_was_asked_for_last(lab: Lab) -> None:
    up(lab, 2)  # and it failed: the lab stands on layer 1
    assert resolve_climb(lab, UpRequest(lab="blue")).target == 2
    assert resolve_climb(lab, UpRequest(lab="blue", layer=1)).target == 1
    assert resolve(lab, UpRequest(lab="blue")).target == 1  # which is what verify checks
    up(lab, 1)
    assert resolve_climb(lab, UpRequest(lab="blue")).target == 1


def test_a_lab_from_before_that_was_kept_stays_where_it_stands(lab: Lab) -> None:
    lab.save(lab.settings.model_copy(update={"target": 0}))
    assert resolve_climb(lab, UpRequest(lab="blue")).target == 1
    assert resolve_climb(Lab(lab.home, "new"), UpRequest(lab="new")).target == 1


def test_settings_from_before_layers_were_kept_can_be_read() -> None:
    words = {"profile": "p", "release": "r", "topology": "t", "node_kind": "lxc", "with_services": ["hello"]}
    assert LabSettings.model_validate(words).with_services == {"hello": 1}


def test_names_may_stand_behind_commas() -> None:
    assert service_names(["swift,barbican", "swift", " designate , "]) == ("swift", "barbican", "designate")
    assert service_names(None) == ()


@pytest.fixture
def virtual(tmp_path: Path) -> Blueprint:
    """A lab of virtual machines that stands on layer 1 and is to get layer 2, with volumes on LVM there."""
    lab = Lab(Home(tmp_path / "state", tmp_path / "cache"), "virtual")
    request = UpRequest(
        lab="virtual", node_kind="vm", layer=2, with_services=("cinder-on-lvm", "cinder-backup")
    )
    blueprint = resolve(lab, request)
    lab.save(blueprint.settings.model_copy(update={"layer": 1, "services": ("mariadb",)}))
    return resolve(lab, request)


def test_containers_build_what_needs_no_kernel_of_its_own(virtual: Blueprint, tmp_path: Path) -> None:
    native = on_containers(virtual, 2)
    gone = names(virtual)[1] - names(native)[1]
    assert (gone, names(native)[0]) == ({"cinder-on-lvm"}, names(virtual)[0])
    assert native.settings.with_services == {"cinder-backup": 2}
    assert [node.kind for node in native.nodes] == ["lxc"]
    assert (native.settings.layer, native.settings.services) == (0, ())
    builder = Lab(Home(tmp_path / "builders", tmp_path / "cache"), "virtual")
    builder.save(native.settings)
    assert names(resolve(builder, UpRequest(lab="virtual", layer=2))) == names(native)


def test_containers_build_a_lower_layer_as_if_there_were_no_other(virtual: Blueprint) -> None:
    native = on_containers(virtual, 1)
    assert (len(native.cuts), native.target, native.settings.with_services) == (1, 1, {})


def test_containers_are_refused_what_needs_a_kernel_of_its_own(tmp_path: Path) -> None:
    lab = Lab(Home(tmp_path / "state", tmp_path / "cache"), "blue")
    with pytest.raises(ModelError) as error:
        resolve(lab, UpRequest(lab="blue", node_kind="lxc", layer=2, with_services=("cinder-on-lvm",)))
    (problem,) = error.value.problems
    assert (
        problem.message == "'cinder-on-lvm' needs nodes with a kernel of their own: --node-kind vm, or hosts"
    )
