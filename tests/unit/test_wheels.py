"""Python packages beside Debian's: named with their version, fetched once, never without being told."""

from pathlib import Path

import pytest

from stacklab import wheels
from stacklab.errors import ModelError, StepFailed
from stacklab.images.packages import Downloads
from stacklab.model.catalog import Catalog
from tests.unit.catalogs import write_catalog, write_service


def test_one_that_the_cache_has_is_not_fetched_again(tmp_path: Path) -> None:
    file = tmp_path / "wheels" / "sushy_tools-2.2.0-py3-none-any.whl"
    file.parent.mkdir()
    file.touch()
    assert wheels.fetch("sushy-tools==2.2.0", Downloads(tmp_path, online=False)) == file


def test_offline_says_what_the_cache_lacks(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"the cache has no sushy_tools-2\.2\.0-py3-none-any\.whl"):
        wheels.fetch("sushy-tools==2.2.0", Downloads(tmp_path, online=False))


def test_its_place_does_not_depend_on_its_version() -> None:
    assert wheels.place("sushy-tools==2.2.0") == "/usr/lib/stacklab/wheels/sushy-tools"


@pytest.mark.parametrize("words", ["sushy-tools", "sushy-tools>=2", "sushy-tools==2.*"])
def test_one_without_an_exact_version_is_refused_at_its_place(words: str, tmp_path: Path) -> None:
    write_catalog(tmp_path, {"keystone": ""}, "keystone")
    file = write_service(tmp_path, "keystone")
    file.write_text(f"{file.read_text()}parts:\n  controller:\n    wheels: ['{words}']\n")
    with pytest.raises(ModelError) as raised:
        Catalog.read([tmp_path])
    (problem,) = raised.value.problems
    assert (problem.file, problem.line) == (file, 8)
