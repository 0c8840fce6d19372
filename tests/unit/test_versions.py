"""Locked versions: written, read, asked for, refused where they are gone; and what `plan` says of images."""

from pathlib import Path
from typing import Any

import pytest

from stacklab.blueprint import UpRequest, resolve
from stacklab.errors import HostUnfit, ModelError, UsageError
from stacklab.home import Home
from stacklab.host.apt import Mirror
from stacklab.host.archive import Archive
from stacklab.images.packages import packages_inputs
from stacklab.images.store import Image, key_of
from stacklab.images.usage import store_of
from stacklab.lab.lab import Lab
from stacklab.plan import make_plan
from stacklab.recipe import LAYER, recipe
from stacklab.render import HostFacts
from stacklab.versions import (
    FILE,
    Versions,
    installed,
    keep_versions,
    read_versions,
    refuse_gone,
    versions_kept,
)
from tests.unit.catalogs import write, write_profile

STATUS = """\
Package: nova-api
Status: install ok installed
Architecture: all
Version: 2:31.0.0-6
Description: OpenStack Compute
 Version: not this one

Package: gone
Status: deinstall ok config-files
Version: 1.0

Package: adduser
Status: hold ok installed
Version: 3.152
"""
SERVICE = "version: 1\nname: {0}\ntitle: {0}\nparts:\n  controller: {{packages: [{0}-server]}}\n"


def versions(**packages: str) -> Versions:
    wanted = {name.replace("_", "-"): version for name, version in packages.items()}
    return Versions(release="epoxy", profile="one", packages=wanted)


class FakeArchive(Archive):
    """An archive that has these versions; the real one needs a mirror."""

    def __init__(self, state: Path, **there: list[str]) -> None:
        super().__init__(Mirror(("http://mirror.example/debian",)), ("trixie",), state)
        self.there = there

    def all_versions(self, names: Any) -> dict[str, list[str]]:
        return {name: self.there[name] for name in names if name in self.there}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    write(tmp_path / "catalog" / "services" / "web" / "service.yaml", SERVICE.format("web"))
    write_profile(tmp_path / "catalog", "web", name="one")
    return Home(tmp_path / "state", tmp_path / "cache")


def request(home: Home, **more: Any) -> UpRequest:
    return UpRequest(lab="blue", **{"profile": "one", "path": (home.state.parent / "catalog",), **more})


def test_dpkg_tells_what_is_installed() -> None:
    assert installed(STATUS) == {"adduser": "3.152", "nova-api": "2:31.0.0-6"}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    written = versions(adduser="3.152", web_server="2:1.10")
    file = write(tmp_path / "lock.yaml", written.yaml())
    assert read_versions(file) == written


def test_a_version_stays_the_text_that_it_is(tmp_path: Path) -> None:
    file = write(tmp_path / "lock.yaml", "version: 1\nrelease: epoxy\nprofile: one\npackages: {a: 3.10}\n")
    assert read_versions(file).packages == {"a": "3.10"}


def test_mistakes_in_the_file_are_told_with_their_place(tmp_path: Path) -> None:
    file = write(tmp_path / "lock.yaml", "version: 1\nrelease: epoxy\npackage: {}\n")
    with pytest.raises(ModelError) as raised:
        read_versions(file)
    assert {problem.line for problem in raised.value.problems} >= {3}


def test_apt_is_told_to_take_them_even_where_they_are_older() -> None:
    assert "Package: a\nPin: version 1:2~rc1\nPin-Priority: 1001\n" in versions(a="1:2~rc1").pins()


def test_versions_that_are_gone_are_all_told(tmp_path: Path) -> None:
    archive = FakeArchive(tmp_path, here=["1.0"], moved=["1.1", "1.2"])
    with pytest.raises(HostUnfit) as raised:
        refuse_gone(versions(here="1.0", moved="1.0", lost="3"), archive)
    assert raised.value.detail == "moved 1.0 (there is: 1.1, 1.2)\nlost 3"
    refuse_gone(versions(here="1.0", moved="1.1"), archive)


def test_a_lab_is_built_by_the_versions_it_was_made_with(home: Home) -> None:
    file = write(home.state / "lock.yaml", versions(web_server="1").yaml())
    lab = Lab(home, "blue")
    blueprint = resolve(lab, request(home, profile=None, locked=file))
    assert blueprint.versions == versions(web_server="1")
    keep_versions(lab, blueprint.versions)
    lab.save(blueprint.settings)
    assert resolve(lab, UpRequest(lab="blue")).versions == versions_kept(lab) == blueprint.versions

    other = write(home.state / "other.yaml", versions(web_server="2").yaml())
    with pytest.raises(UsageError, match="not built by the versions"):
        resolve(lab, UpRequest(lab="blue", locked=other))


def test_a_file_for_something_else_is_refused(home: Home) -> None:
    file = write(home.state / "lock.yaml", versions(other="1").yaml())
    with pytest.raises(UsageError, match="locks no version of web-server"):
        resolve(Lab(home, "blue"), request(home, locked=file))
    with pytest.raises(UsageError, match="of the profile 'one', not 'openstack'"):
        resolve(Lab(home, "blue"), request(home, profile="openstack", locked=file))


def test_versions_are_part_of_the_keys_of_images(home: Home) -> None:
    base = Image("base", "0" * 64, home.cache, {"packages": []})
    first, second = versions(web_server="1"), versions(web_server="2")
    assert len({key_of(packages_inputs(base, ["web-server"], each)) for each in (None, first, second)}) == 3

    keys = set()
    for number, each in enumerate((None, first, second)):
        lab = Lab(home, f"lab-{number}")
        keep_versions(lab, each)
        blueprint = resolve(lab, request(home))
        assert (lab.folder / FILE).exists() == (each is not None)
        keys.add(key_of(recipe(blueprint, 1, HostFacts(kvm=False, openvswitch=False), {})))
    assert len(keys) == 3


def test_plan_says_what_up_starts_from_and_why_not(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = HostFacts(kvm=False, openvswitch=False)
    monkeypatch.setattr("stacklab.plan.host_facts", lambda _home, _kind: facts)
    monkeypatch.setattr("stacklab.images.store.seal_in_background", lambda _folder: None)
    store = store_of(home)
    blueprint = resolve(Lab(home, "blue"), request(home))
    image = store.add(LAYER, recipe(blueprint, 1, facts, {}), lambda folder: None, stands_on=())

    plan = make_plan(home, request(home))
    assert plan.start is not None
    assert (plan.start.image, plan.start.layer, plan.layers) == (image.name, 1, ())

    service = home.state.parent / "catalog" / "services" / "web"
    write(service / "files" / "etc" / "web.conf", "new\n")
    plan = make_plan(home, request(home))
    assert plan.start is not None
    assert (plan.start.image, plan.start.closest) == ("", image.name)
    assert "files controller /etc/web.conf is new" in plan.start.reasons
    assert [layer.number for layer in plan.layers] == [1]
