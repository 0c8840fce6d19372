"""The tree of a node's configuration files: what is written, what is taken away, and what a crash leaves."""

import grp
import io
import json
import os
import pwd
import stat
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "playbooks" / "library"))
import config_tree

US = (os.getuid(), os.getgid())


def us(name: str) -> tuple[int, int]:
    """Everybody is us, so that no test needs root."""
    if name == "nobody-has-this":
        raise KeyError(name)
    return US


ACCOUNTS = config_tree.Accounts(uid=lambda name: us(name)[0], gid=lambda name: us(name)[1])


def entry(path: str, content: str = "new", mode: int = 0o640, **more: Any) -> config_tree.Entry:
    known = {"kind": "file", "owner": "root", "group": "glance", "content": content.encode(), **more}
    return config_tree.Entry(path=path, mode=mode, **known)


def folder(path: str, mode: int = 0o750) -> config_tree.Entry:
    return entry(path, "", mode, kind="directory")


def apply(
    root: Path, *entries: config_tree.Entry, name: str = "layer-1", check: bool = False
) -> config_tree.Changes:
    return config_tree.ConfigTree(name, root, ACCOUNTS).apply(list(entries), check)


def files(root: Path) -> dict[str, str]:
    """Every file's content but stacklab's own, by path on the node."""
    return {
        f"/{file.relative_to(root)}": file.read_text()
        for file in sorted(root.rglob("*"))
        if file.is_file() and config_tree.STATE not in str(file)
    }


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def archive(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uname, info.gname = len(content), 0o640, "root", "glance"
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


class TestArchive:
    def test_members_become_entries_with_owner_group_and_mode(self) -> None:
        found = config_tree.read_archive(archive(("etc/b", b"2"), ("./etc/a", b"1")))
        assert found == [entry("/etc/a", "1"), entry("/etc/b", "2")]

    def test_a_path_out_of_the_root_and_a_file_in_a_file_are_refused_together(self) -> None:
        with pytest.raises(config_tree.TreeError) as caught:
            config_tree.read_archive(archive(("../etc/a", b""), ("etc/b", b""), ("etc/b/c", b"")))
        assert str(caught.value).splitlines() == [
            "../etc/a: does not lie below the root",
            "/etc/b/c: /etc/b is a file in the same tree",
        ]

    @pytest.mark.parametrize("data", [b"", b"not gzip", archive(("etc/a", b"1" * 10_000))[:60]])
    def test_a_broken_archive_is_refused(self, data: bytes) -> None:
        with pytest.raises(config_tree.TreeError, match="cannot be read"):
            config_tree.read_archive(data)

    def test_a_device_is_refused(self) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            device = tarfile.TarInfo("dev/null")
            device.type = tarfile.CHRTYPE
            tar.addfile(device)
        with pytest.raises(config_tree.TreeError, match="/dev/null: neither a file nor"):
            config_tree.read_archive(buffer.getvalue())


class TestWriting:
    def test_new_files_are_written_with_their_mode_below_new_folders(self, tmp_path: Path) -> None:
        changes = apply(tmp_path, entry("/etc/glance/conf.d/a.conf", "a"), entry("/etc/b", "b", 0o600))
        assert files(tmp_path) == {"/etc/glance/conf.d/a.conf": "a", "/etc/b": "b"}
        assert (mode(tmp_path / "etc/b"), mode(tmp_path / "etc/glance/conf.d")) == (0o600, 0o755)
        assert changes.paths() == ["/etc/b", "/etc/glance/conf.d/a.conf"]

    def test_nothing_is_touched_when_all_is_as_wanted(self, tmp_path: Path) -> None:
        wanted = [folder("/etc/x"), entry("/etc/x/a"), entry("/l", "", 0o777, kind="link", target="etc/x/a")]
        apply(tmp_path, *wanted)
        before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
        assert apply(tmp_path, *wanted).paths() == []
        assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before

    def test_only_what_differs_is_written(self, tmp_path: Path) -> None:
        apply(tmp_path, entry("/etc/a", "1"), entry("/etc/b", "1"), entry("/etc/c", "1"))
        (tmp_path / "etc/c").chmod(0o777)
        changes = apply(tmp_path, entry("/etc/a", "2"), entry("/etc/b", "1"), entry("/etc/c", "1"))
        assert (changes.written, changes.adjusted) == (["/etc/a"], ["/etc/c"])
        assert mode(tmp_path / "etc/c") == 0o640

    def test_a_file_that_somebody_edited_is_put_right(self, tmp_path: Path) -> None:
        apply(tmp_path, entry("/etc/a", "ours"))
        (tmp_path / "etc/a").write_text("edited")
        assert apply(tmp_path, entry("/etc/a", "ours")).written == ["/etc/a"]
        assert apply(tmp_path).restored == []

    def test_a_folder_gets_the_mode_that_its_member_says(self, tmp_path: Path) -> None:
        (tmp_path / "etc").mkdir(mode=0o755)
        assert apply(tmp_path, folder("/etc", 0o700), folder("/srv/new", 0o2750)).paths() == [
            "/etc",
            "/srv/new",
        ]
        assert (mode(tmp_path / "etc"), mode(tmp_path / "srv/new")) == (0o700, 0o2750)

    def test_a_link_is_written_and_moved(self, tmp_path: Path) -> None:
        for target in ("one", "two"):
            assert apply(tmp_path, entry("/l", "", 0o777, kind="link", target=target)).written == ["/l"]
            assert str((tmp_path / "l").readlink()) == target

    def test_check_says_the_same_and_touches_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc/package").write_text("package")
        apply(tmp_path, entry("/etc/gone"), entry("/etc/package"))
        before = files(tmp_path)
        said = apply(tmp_path, entry("/etc/new"), check=True)
        assert files(tmp_path) == before
        assert apply(tmp_path, entry("/etc/new")) == said
        assert (said.written, said.removed, said.restored) == (["/etc/new"], ["/etc/gone"], ["/etc/package"])

    def test_missing_users_and_groups_and_a_folder_in_the_way_are_told_before_anything_is_written(
        self, tmp_path: Path
    ) -> None:
        with pytest.raises(config_tree.TreeError) as caught:
            apply(
                tmp_path, entry("/etc/a"), entry("/etc/b", owner="nobody-has-this", group="nobody-has-this")
            )
        assert [line.partition(";")[0] for line in str(caught.value).splitlines()] == [
            "/etc/b: no user 'nobody-has-this' on this node",
            "/etc/b: no group 'nobody-has-this' on this node",
        ]
        (tmp_path / "etc/b").mkdir(parents=True)
        with pytest.raises(
            config_tree.TreeError, match="/etc/b: should be a file, and a directory stands there"
        ):
            apply(tmp_path, entry("/etc/a"), entry("/etc/b"))
        assert files(tmp_path) == {}

    @pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
    def test_files_belong_to_whom_the_tree_says(self, tmp_path: Path) -> None:
        user, group = pwd.getpwall()[-1].pw_name, grp.getgrall()[-1].gr_name
        tree = config_tree.ConfigTree("layer-1", tmp_path, config_tree.Accounts())
        tree.apply([entry("/etc/a", owner=user, group=group)])
        assert ((tmp_path / "etc/a").owner(), (tmp_path / "etc/a").group()) == (user, group)


class TestLeaving:
    def test_what_left_the_tree_is_removed_with_the_folders_made_for_it(self, tmp_path: Path) -> None:
        (tmp_path / "etc").mkdir()
        apply(tmp_path, entry("/etc/nova/conf.d/a"), folder("/etc/nova/x"), entry("/etc/b"))
        changes = apply(tmp_path, entry("/etc/b"))
        assert "/etc/nova/conf.d/a" in changes.removed
        assert sorted(path.name for path in (tmp_path / "etc").iterdir()) == ["b"]

    def test_a_folder_that_was_there_or_holds_something_else_stays(self, tmp_path: Path) -> None:
        (tmp_path / "etc/package").mkdir(parents=True)
        apply(tmp_path, folder("/etc/package"), folder("/srv/data"), entry("/srv/data/a"))
        (tmp_path / "srv/data/of-a-user").write_text("precious")
        apply(tmp_path)
        assert (tmp_path / "etc/package").is_dir()
        assert files(tmp_path) == {"/srv/data/of-a-user": "precious"}

    def test_a_file_of_a_package_comes_back_as_it_was(self, tmp_path: Path) -> None:
        place = tmp_path / "etc/nova.conf"
        place.parent.mkdir()
        place.write_text("package's")
        place.chmod(0o604)
        for content in ("first", "second"):
            apply(tmp_path, entry("/etc/nova.conf", content))
        assert apply(tmp_path).restored == ["/etc/nova.conf"]
        assert (place.read_text(), mode(place)) == ("package's", 0o604)
        assert apply(tmp_path).paths() == []

    def test_a_file_already_deleted_by_hand_is_no_change(self, tmp_path: Path) -> None:
        apply(tmp_path, entry("/etc/a"))
        (tmp_path / "etc/a").unlink()
        assert "/etc/a" not in apply(tmp_path).paths()


class TestSeveralTrees:
    def test_one_does_not_take_away_what_the_other_put(self, tmp_path: Path) -> None:
        apply(tmp_path, entry("/etc/a"), name="layer-1")
        apply(tmp_path, entry("/etc/b"), name="layer-2")
        apply(tmp_path, name="layer-2")
        assert files(tmp_path) == {"/etc/a": "new"}

    def test_a_path_of_two_belongs_to_the_one_applied_last(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("package's")
        apply(tmp_path, entry("/a", "1"), name="layer-1")
        apply(tmp_path, entry("/a", "2"), name="layer-2")
        assert apply(tmp_path, name="layer-1").paths() == []
        assert files(tmp_path) == {"/a": "2"}
        assert apply(tmp_path, name="layer-2").restored == ["/a"]
        assert files(tmp_path) == {"/a": "package's"}

    def test_the_manifest_names_each_path_once(self, tmp_path: Path) -> None:
        apply(tmp_path, entry("/a"), entry("/b"), name="layer-1")
        apply(tmp_path, entry("/a"), name="layer-2")
        manifest = tmp_path / config_tree.STATE / "tree.json"
        trees = json.loads(manifest.read_text())["trees"]
        assert {name: sorted(tree) for name, tree in trees.items()} == {"layer-1": ["/b"], "layer-2": ["/a"]}
        assert mode(manifest) == 0o600


class TestCrash:
    """The power goes at a moment of our choice: an exception that nothing on the way may handle."""

    class PowerCut(BaseException):
        pass

    @pytest.mark.parametrize("renames", range(5))
    def test_each_file_is_old_or_new_and_the_next_run_completes_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
    ) -> None:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc/package").write_text("package's")
        apply(tmp_path, entry("/etc/a", "old"), entry("/etc/gone", "old"))
        new = [entry("/etc/a", "new"), entry("/etc/b", "new"), entry("/etc/package", "new")]
        replace, left = Path.replace, [renames]

        def cut(self: Path, target: Path) -> Path:
            if not left[0]:
                raise TestCrash.PowerCut
            left[0] -= 1
            return replace(self, target)

        with monkeypatch.context() as patch, pytest.raises(TestCrash.PowerCut):
            patch.setattr(Path, "replace", cut)
            apply(tmp_path, *new)
        for path, content in files(tmp_path).items():
            if not path.endswith(config_tree.PENDING):
                assert content in ("old", "new", "package's")
        apply(tmp_path, *new)
        assert files(tmp_path) == {"/etc/a": "new", "/etc/b": "new", "/etc/package": "new"}
        apply(tmp_path)
        assert files(tmp_path) == {"/etc/package": "package's"}

    def test_a_full_disk_leaves_the_old_files_and_no_others(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        apply(tmp_path, entry("/etc/a", "old"), entry("/etc/b", "old"))
        write = config_tree.ConfigTree._write_durably

        def full(place: Path, content: bytes, mode: int, ids: tuple[int, int] | None) -> None:
            if place.name.startswith(".b"):
                raise OSError(28, "No space left on device")
            write(place, content, mode, ids)

        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr(config_tree.ConfigTree, "_write_durably", staticmethod(full))
            apply(tmp_path, entry("/etc/a"), entry("/etc/b"))
        assert files(tmp_path) == {"/etc/a": "old", "/etc/b": "old"}
