#!/usr/bin/python
"""Ansible module: put a tree of rendered configuration files on a node, and take away what has left it.

One task instead of one per file: a layer has about a hundred files and an Ansible task costs 0.2 s. The core,
`ConfigTree`, needs neither Ansible nor root and is what the unit tests run. Standard library only, as it
runs on the node.
"""

import base64
import binascii
import contextlib
import grp
import hashlib
import io
import json
import os
import pwd
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: config_tree
short_description: Make the configuration files of a node equal to a rendered tree
options:
  name:
    description:
      - Name of the tree. Several trees coexist on a node.
      - A path that two of them hold belongs to the one applied last.
    type: str
    default: tree
  archive:
    description:
      - A tar.gz in base64. Members are paths below C(root), with mode and owner by name.
      - A directory member sets that directory's mode and owner.
      - Parents that are missing and have no member are made root:root 0755.
    type: str
    required: true
  root:
    description: Where the tree is put; another folder than / for an image that is not running.
    type: path
    default: /
"""

EXAMPLES = r"""
- config_tree: {name: layer-1, archive: "{{ lookup('file', 'tree.tar.gz.b64') }}"}
"""

RETURN = r"""
changed_paths: {description: Every path touched, sorted, type: list, returned: always}
written: {description: Paths whose content was written, type: list, returned: always}
adjusted: {description: Paths of which only owner or mode changed, type: list, returned: always}
removed: {description: Paths of an earlier tree that were taken away, type: list, returned: always}
restored: {description: Paths where the package's own file was put back, type: list, returned: always}
"""

STATE = "var/lib/stacklab"
PENDING = ".stacklab-new"
WRITERS = 8

Tree = dict[str, dict[str, Any]]


class TreeError(Exception):
    """The tree cannot be put on this node; the message says why, a problem per line. Nothing was written."""


@dataclass(frozen=True)
class Entry:
    """One member of the tree. `path` is absolute on the node, without the root folder in front."""

    path: str
    kind: str  # file, directory or link
    mode: int
    owner: str
    group: str
    content: bytes = b""
    target: str = ""

    def record(self, made: bool) -> dict[str, Any]:
        """What the manifest remembers of the entry; `made` says that its path did not exist before."""
        return {
            "kind": self.kind,
            "mode": f"{self.mode:04o}",
            "owner": self.owner,
            "group": self.group,
            "sha256": hashlib.sha256(self.content or self.target.encode()).hexdigest(),
            "made": made,
        }


@dataclass(frozen=True)
class Accounts:
    """Turns names of users and groups into ids. Injected, as a test has no `glance` group and is not root."""

    uid: Callable[[str], int] = lambda name: pwd.getpwnam(name).pw_uid
    gid: Callable[[str], int] = lambda name: grp.getgrnam(name).gr_gid

    @classmethod
    def of(cls, root: Path) -> "Accounts":
        """Those of the system in `root`: by its own files, where it is not the one that runs."""
        if root == Path("/"):
            return cls()
        users, groups = (_ids_in(root / "etc" / name) for name in ("passwd", "group"))
        return cls(users.__getitem__, groups.__getitem__)


def _ids_in(file: Path) -> dict[str, int]:
    """By name, the ids in a file like passwd(5) or group(5)."""
    entries = [line.split(":") for line in file.read_text().splitlines()]
    return {entry[0]: int(entry[2]) for entry in entries}


@dataclass
class Changes:
    """What was, or in check mode would be, done to the node."""

    written: list[str] = field(default_factory=list)
    adjusted: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)

    def paths(self) -> list[str]:
        """Every path touched, sorted."""
        return sorted({*self.written, *self.adjusted, *self.removed, *self.restored})


def read_archive(data: bytes) -> list[Entry]:
    """Unpack a tar.gz (bytes, not base64) into entries sorted by path.

    Raises TreeError for a broken archive and for a member that is not a plain file, directory or symbolic
    link below the root.
    """
    entries: dict[str, Entry] = {}
    problems: list[str] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            for member in archive:
                parts = [part for part in PurePosixPath(member.name).parts if part not in ("/", ".")]
                if not parts and member.isdir():
                    continue
                if not parts or ".." in parts:
                    problems.append(f"{member.name}: does not lie below the root")
                    continue
                path = "/" + "/".join(parts)
                content, target = b"", ""
                if member.isfile():
                    kind = "file"
                    reader = archive.extractfile(member)
                    content = reader.read() if reader else b""
                elif member.isdir():
                    kind = "directory"
                elif member.issym():
                    kind, target = "link", member.linkname
                else:
                    problems.append(f"{path}: neither a file nor a directory nor a symbolic link")
                    continue
                owner, group = member.uname or "root", member.gname or "root"
                entries[path] = Entry(path, kind, member.mode & 0o7777, owner, group, content, target)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise TreeError(f"the archive cannot be read: {error}") from error
    for path, entry in entries.items():
        above = entries.get(path.rpartition("/")[0])
        if above and above.kind != "directory":
            problems.append(f"{entry.path}: {above.path} is a {above.kind} in the same tree")
    if problems:
        raise TreeError("\n".join(sorted(problems)))
    return [entries[path] for path in sorted(entries)]


class ConfigTree:
    """Makes files below `root` equal to a tree, and remembers in a manifest whose they are.

    The manifest, `<root>/var/lib/stacklab/tree.json`, is `{"version": 1, "trees": {name: {path: record}}}`.
    A file that a package had at a path is kept once below `/var/lib/stacklab/replaced/`, and comes back when
    no tree holds the path.
    """

    def __init__(self, name: str, root: Path = Path("/"), accounts: Accounts | None = None) -> None:
        self.name = name
        self.root = root
        self.accounts = accounts or Accounts.of(root)
        self.state = root / STATE
        self.manifest = self.state / "tree.json"
        self.trees = self._read_manifest()

    def apply(self, entries: list[Entry], check: bool = False) -> Changes:
        """Write what differs, remove what left the tree, and return the changes; with `check`, only that.

        A crash at any moment leaves each file either old or new, and the next call completes the work: the
        manifest owns every new path before the first one is written. Raises TreeError before anything is
        written when a user or group is missing or a directory stands where a file should.
        """
        ids = self._ids(entries)
        self._refuse_misfits(entries)
        before = self.trees.get(self.name, {})
        elsewhere = {path for name, tree in self.trees.items() if name != self.name for path in tree}
        wanted = {entry.path: entry for entry in entries}
        changes = Changes()
        for entry in entries:
            difference = self._difference(entry, ids)
            if difference == "content":
                changes.written.append(entry.path)
            elif difference == "access":
                changes.adjusted.append(entry.path)
        parents = self._parents_made(wanted, before)
        leaving = before.keys() - wanted.keys() - parents.keys()
        for path in sorted(leaving, reverse=True):
            if before[path]["kind"] == "directory" and not (
                before[path].get("made") and self._would_be_empty(path, leaving)
            ):
                continue
            kept = os.path.lexists(self._replaced(path))
            if kept or os.path.lexists(self._at(path)):
                (changes.restored if kept else changes.removed).append(path)
        if check:
            return changes

        self._discard_leftovers()
        written = [wanted[path] for path in changes.written]
        owned = before.keys() | elsewhere
        for entry in written:
            if entry.kind != "directory" and entry.path not in owned:
                self._keep(entry.path)
        final = {
            entry.path: entry.record(
                made=not os.path.lexists(self._at(entry.path))
                or any(tree.get(entry.path, {}).get("made", False) for tree in self.trees.values())
            )
            for entry in entries
        }
        final |= parents
        union = {**before, **final}
        if union != before or elsewhere & final.keys():
            self._own(union)
        self._write(written, ids)
        for path in changes.adjusted:
            self._set_access(self._at(path), wanted[path], ids)
        for path in changes.removed:
            self._remove(path)
        for path in changes.restored:
            self._restore(path)
        if final != union:
            self._own(final)
        return changes

    # What is there

    def _at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def _replaced(self, path: str) -> Path:
        return self.state / "replaced" / path.lstrip("/")

    def _ids(self, entries: list[Entry]) -> dict[str, tuple[int, int]]:
        """Uid and gid by path; raises TreeError with every name that the node does not know."""
        users: dict[str, int] = {}
        groups: dict[str, int] = {}
        problems: list[str] = []
        for names, known, look_up, word in (
            ({entry.owner for entry in entries}, users, self.accounts.uid, "user"),
            ({entry.group for entry in entries}, groups, self.accounts.gid, "group"),
        ):
            for name in sorted(names):
                try:
                    known[name] = look_up(name)
                except KeyError:
                    of = next(e.path for e in entries if name == (e.owner if word == "user" else e.group))
                    problems.append(
                        f"{of}: no {word} {name!r} on this node; is the service's package installed?"
                    )
        if problems:
            raise TreeError("\n".join(problems))
        return {entry.path: (users[entry.owner], groups[entry.group]) for entry in entries}

    def _refuse_misfits(self, entries: list[Entry]) -> None:
        problems = []
        for entry in entries:
            place = self._at(entry.path)
            if entry.kind == "directory":
                if os.path.lexists(place) and not place.is_dir():
                    problems.append(f"{entry.path}: should be a directory, and a file stands there")
            elif place.is_dir() and not place.is_symlink():
                problems.append(f"{entry.path}: should be a {entry.kind}, and a directory stands there")
        if problems:
            raise TreeError("\n".join(problems))

    def _difference(self, entry: Entry, ids: dict[str, tuple[int, int]]) -> str:
        """'content', 'access' (owner or mode only) or ''."""
        place = self._at(entry.path)
        try:
            status = place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return "content"
        if entry.kind == "link":
            return "" if stat.S_ISLNK(status.st_mode) and str(place.readlink()) == entry.target else "content"
        if entry.kind == "directory":
            status = place.stat()
        elif (
            not stat.S_ISREG(status.st_mode)
            or status.st_size != len(entry.content)
            or place.read_bytes() != entry.content
        ):
            return "content"
        same = (status.st_uid, status.st_gid) == ids[entry.path] and stat.S_IMODE(
            status.st_mode
        ) == entry.mode
        return "" if same else "access"

    def _would_be_empty(self, path: str, leaving: Iterable[str]) -> bool:
        try:
            inside = {f"{path}/{place.name}" for place in self._at(path).iterdir()}
        except (FileNotFoundError, NotADirectoryError):
            return False
        return inside <= set(leaving) and not any(os.path.lexists(self._replaced(name)) for name in inside)

    def _parents_made(self, wanted: Iterable[str], before: Tree) -> Tree:
        """Records of folders that are there, or will be, only because something of the tree lies in them."""
        above = {"/" + str(parent) for path in wanted for parent in PurePosixPath(path.lstrip("/")).parents}
        record = {"kind": "directory", "made": True}
        return {
            path: record
            for path in above - set(wanted) - {"/."}
            if path in before or not os.path.lexists(self._at(path))
        }

    # What is done

    def _discard_leftovers(self) -> None:
        """Remove the half-written files of a call that was killed."""
        for tree in self.trees.values():
            for path in tree:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    self._pending(self._at(path)).unlink()

    def _keep(self, path: str) -> None:
        """Keep a package's file, once, with owner and mode."""
        place, kept = self._at(path), self._replaced(path)
        if not os.path.lexists(place) or os.path.lexists(kept):
            return
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        pending = self._pending(kept)
        self._copy(place, pending)
        pending.replace(kept)

    def _write(self, entries: list[Entry], ids: dict[str, tuple[int, int]]) -> None:
        """Write new content beside its place, sync, then rename. Threads let the disk join the syncs."""
        renames: list[tuple[Path, Path]] = []
        for entry in entries:
            place = self._at(entry.path)
            if entry.kind == "directory":
                self._make_directory(place)
                self._set_access(place, entry, ids)
            else:
                self._make_directory(place.parent)
                renames.append((self._pending(place), place))

        def prepare(entry: Entry) -> None:
            pending = self._pending(self._at(entry.path))
            if entry.kind == "link":
                pending.symlink_to(entry.target)
                self._set_access(pending, entry, ids)
                return
            self._write_durably(pending, entry.content, entry.mode, ids[entry.path])

        try:
            with ThreadPoolExecutor(WRITERS) as pool:
                list(pool.map(prepare, [entry for entry in entries if entry.kind != "directory"]))
        except BaseException:
            for pending, _ in renames:
                pending.unlink(missing_ok=True)
            raise
        for pending, place in renames:
            pending.replace(place)

    def _make_directory(self, place: Path) -> None:
        if not place.is_dir():
            self._make_directory(place.parent)
            place.mkdir()
            place.chmod(0o755)

    def _set_access(self, place: Path, entry: Entry, ids: dict[str, tuple[int, int]]) -> None:
        uid, gid = ids[entry.path]
        status = place.lstat() if entry.kind == "link" else place.stat()
        if (status.st_uid, status.st_gid) != (uid, gid):
            os.chown(place, uid, gid, follow_symlinks=entry.kind != "link")
        if entry.kind != "link":
            place.chmod(entry.mode)

    def _remove(self, path: str) -> None:
        place = self._at(path)
        if place.is_dir() and not place.is_symlink():
            with contextlib.suppress(OSError):  # something appeared in it meanwhile: not ours, so it stays
                place.rmdir()
        else:
            place.unlink(missing_ok=True)

    def _restore(self, path: str) -> None:
        """Put a package's file back. The kept copy goes last, so a crash before that is mended."""
        place, kept = self._at(path), self._replaced(path)
        self._make_directory(place.parent)
        pending = self._pending(place)
        self._copy(kept, pending)
        pending.replace(place)
        kept.unlink()

    def _own(self, tree: Tree) -> None:
        """Write the manifest with this tree's paths; they are no other tree's any more."""
        others = {
            name: {path: record for path, record in paths.items() if path not in tree}
            for name, paths in self.trees.items()
            if name != self.name
        }
        trees = {name: paths for name, paths in {**others, self.name: tree}.items() if paths}
        self.state.mkdir(parents=True, exist_ok=True)
        pending = self._pending(self.manifest)
        pending.unlink(missing_ok=True)
        text = json.dumps({"version": 1, "trees": trees}, indent=1, sort_keys=True)
        self._write_durably(pending, text.encode(), 0o600, None)
        pending.replace(self.manifest)
        self.trees = trees

    def _read_manifest(self) -> dict[str, Tree]:
        try:
            document = json.loads(self.manifest.read_text())
            trees: dict[str, Tree] = document["trees"]
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError) as error:
            raise TreeError(f"{self.manifest}: not a manifest of stacklab: {error}") from error
        return trees

    @staticmethod
    def _pending(place: Path) -> Path:
        """Where new content waits for its rename; its name keeps it from being read in a *.conf folder."""
        return place.with_name(f".{place.name}{PENDING}")

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        """Copy a file or link with owner, mode and times."""
        target.unlink(missing_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)
        status = source.lstat()
        with contextlib.suppress(PermissionError):  # not root: a test, or a file of the same owner
            os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
            if not stat.S_ISLNK(status.st_mode):
                target.chmod(stat.S_IMODE(status.st_mode))  # chown drops set-id bits

    @staticmethod
    def _write_durably(place: Path, content: bytes, mode: int, ids: tuple[int, int] | None) -> None:
        handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            if ids and ids != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), *ids)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())


def main() -> None:
    """Entry point of the module."""
    options: dict[str, Any] = {
        "name": {"type": "str", "default": "tree"},
        "archive": {"type": "str", "required": True, "no_log": True},
        "root": {"type": "path", "default": "/"},
    }
    module = AnsibleModule(argument_spec=options, supports_check_mode=True)
    try:
        entries = read_archive(base64.b64decode(module.params["archive"], validate=True))
        tree = ConfigTree(module.params["name"], Path(module.params["root"]))
        changes = tree.apply(entries, check=module.check_mode)
    except binascii.Error as error:
        module.fail_json(msg=f"the archive is not base64: {error}")
    except TreeError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"writing the tree failed: {error}")
    else:
        paths = changes.paths()
        module.exit_json(
            changed=bool(paths),
            changed_paths=paths,
            written=changes.written,
            adjusted=changes.adjusted,
            removed=changes.removed,
            restored=changes.restored,
        )


if __name__ == "__main__":
    main()
