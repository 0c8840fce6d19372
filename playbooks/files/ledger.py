#!/usr/bin/python3
"""Keeps book, on a host, of all that stacklab adds to it, and takes it away again.

    ledger.py open LAB                  begin; nothing else is changed
    ledger.py install LABEL PACKAGE...  install, start nothing, and book what came under the label
    ledger.py retire [SERVICE...]       end what services, or all, left running, and switch their units off
    ledger.py forget SERVICE...         have all their steps done again when they come back
    ledger.py undo [LABEL...]           purge what was booked under the labels; without any undo everything
    ledger.py stop | start              the units of all services

Only what was booked is ever taken away: what the host's owner has put there meanwhile stays. The book is
/var/lib/stacklab/ledger.json. Each verb may be run again, also after it was cut off. Standard library only.
"""

import contextlib
import fcntl
import grp
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATE = Path("/var/lib/stacklab")
PROGRAM = Path("/usr/lib/stacklab/ledger.py")
LOGS = Path("/var/log/stacklab")
OURS = ("/tmp/.stacklab-ansible", str(LOGS))
KEPT = STATE / "kept"
LOG = LOGS / "packages.log"
POLICY = Path("/usr/sbin/policy-rc.d")
PLACED = "placed by stacklab"
LINKS = Path("/etc/systemd/system")
OWNERS_UNITS = (LINKS, Path("/usr/local/lib/systemd/system"))
LINGER = Path("/var/lib/systemd/linger")
# What OpenStack's commands write of their own as they run as root; the folder after what is in it.
CACHES = ("/root/.cache/python-entrypoints", "/root/.cache")
# Where packages and services keep what outlives them; and how deep the folders that were there are booked.
TREES = ("/etc", "/var", "/srv", "/opt")
IN_TREES = tuple(f"{tree}/" for tree in TREES)
DEPTH = 3
TAIL = 40
NOT_THERE = ("not-installed", "config-files")
CONFIGURATION_STAYS = (
    "--option=Dpkg::Options::=--force-confdef",
    "--option=Dpkg::Options::=--force-confold",
)


class Trouble(Exception):
    """It could not be done; the text says why."""


@dataclass(frozen=True)
class Snapshot:
    """What of a host installing packages may change."""

    packages: list[str]
    users: list[str]
    groups: list[str]
    links: list[str]
    folders: list[str]

    @classmethod
    def take(cls) -> "Snapshot":
        """The host as it is now."""
        return cls(
            packages=[name for name, status in _packages().items() if status not in NOT_THERE],
            users=sorted(user.pw_name for user in pwd.getpwall()),
            groups=sorted(group.gr_name for group in grp.getgrall()),
            links=_links(),
            folders=_folders(),
        )


class Ledger:
    """The book of one host. take: looks at the host; injected, as the tests' machine is not to be changed."""

    def __init__(
        self, file: Path = STATE / "ledger.json", take: Callable[[], Snapshot] = Snapshot.take
    ) -> None:
        self._file = file
        self._take = take
        self.book: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    def write(self) -> None:
        """Write the book, whole or not at all."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        pending = self._file.with_suffix(".new")
        with pending.open("w") as file:
            json.dump(self.book, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        pending.chmod(0o600)
        pending.replace(self._file)

    def open(self, lab: str) -> None:
        """Begin the book for a lab. Raises Trouble when it is another's."""
        owner = self.book.get("lab")
        if owner not in (None, lab):
            raise Trouble(f"this host is part of the lab '{owner}'")
        if owner is None:
            absent = [path for path in CACHES if not Path(path).exists()]
            self.book = {"version": 1, "lab": lab, "added": [], "absent": absent}
            self.write()

    def begin(self) -> None:
        """Book what is there before packages come."""
        self.settle()
        if not self.book["added"]:
            _keep_etc()
        self.book["before"] = vars(self._take())
        self.write()

    def settle(self, label: str = "") -> None:
        """Book what has come since `begin`, also when that call was cut off."""
        before = self.book.pop("before", None)
        if before is None:
            return
        now = self._take()
        entry = {
            "label": label or self.book.get("label", ""),
            "packages": sorted(set(now.packages) - set(before["packages"])),
            "users": sorted(set(now.users) - set(before["users"])),
            "groups": sorted(set(now.groups) - set(before["groups"])),
            "folders": sorted(set(now.folders) - set(before["folders"])),
        }
        # stacklab enables what is to run; nothing else that came with packages starts at the next boot.
        for link in set(now.links) - set(before["links"]):
            Path(link).unlink(missing_ok=True)
        if any(entry[key] for key in ("packages", "users", "groups", "folders")):
            self.book["added"].append(entry)
        self.write()


def install(ledger: Ledger, label: str, packages: Sequence[str]) -> None:
    """Install packages with apt, as the host itself is set up to; nothing starts meanwhile."""
    ledger.book["label"] = label
    ledger.settle(label)
    there = _packages()
    missing = sorted(name for name in packages if there.get(name) != "installed")
    was_cut_off = any(status not in ("installed", *NOT_THERE) for status in there.values())
    if not missing and not was_cut_off:
        return
    ledger.begin()
    with _starts_forbidden(), LOG.open("ab") as log:
        _apt(log, ["apt-get", "-q", "update"])
        if was_cut_off:  # by a power failure, for one
            _mend(log)
        if missing:
            command = ["apt-get", "-q", "-y", "--no-install-recommends", *CONFIGURATION_STAYS, "install"]
            _apt(log, [*command, *missing])
    ledger.settle(label)
    _quietly("systemctl", "daemon-reload")
    # Packages ask for it, and nothing that they ask for is done here; without it, polkit gets no name.
    _quietly("systemctl", "reload", "dbus")
    _quietly("systemd-tmpfiles", "--create", "--exclude-prefix=/dev")


def retire(services: Sequence[str]) -> None:
    """Run what services say is to be run when they go, then stop and disable their units, the last first."""
    wanted = set(services)
    for command in _read(STATE / "retire.json"):
        if not wanted or command["service"] in wanted:
            done = subprocess.run(
                ["/bin/sh", "-c", command["run"]],
                capture_output=True,
                text=True,
                check=False,
                env=_environment(),
            )
            if done.returncode:
                print(f"{command['service']}: {done.stderr.strip()}", file=sys.stderr)
    units = units_of(wanted)
    if units:
        _quietly("systemctl", "disable", "--now", "--quiet", *units)
        _quietly("systemctl", "reset-failed", *units)


def forget(services: Sequence[str]) -> None:
    """Forget which steps of services have passed: when they come back, all of them are done again."""
    for service in services:
        for stamp in (STATE / "steps").glob(f"{service}.*"):
            stamp.unlink()


def undo(ledger: Ledger, labels: Sequence[str]) -> None:
    """Take away what was booked under the labels, the last first; without any: all, and the book itself."""
    ledger.settle()
    if not labels:
        retire([])
        restore_files()
        _quietly("systemctl", "daemon-reload")
    for entry in [
        each for each in reversed(ledger.book.get("added", [])) if not labels or each["label"] in labels
    ]:
        purge(ledger, entry)
        ledger.book["added"].remove(entry)
        ledger.write()
    if not labels:
        _allow_starts()
        _remove_caches(ledger.book.get("absent", ()))
        Path("/run/stacklab-converge.pid").unlink(missing_ok=True)
        for folder in OURS:
            shutil.rmtree(folder, ignore_errors=True)
        _leave()


def _leave() -> None:
    """Remove what undo itself works with, the book as the last of it: where that is, there is more to do."""
    for path in STATE.iterdir():
        if path.name != "ledger.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    PROGRAM.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        PROGRAM.parent.rmdir()
    shutil.rmtree(STATE)


def restore_files() -> None:
    """Take away the files that stacklab put on the host; what had been at their places comes back.

    The manifest is that of playbooks/library/config_tree.py.
    """
    manifest = STATE / "tree.json"
    trees = json.loads(manifest.read_text())["trees"] if manifest.exists() else {}
    records = {path: record for tree in trees.values() for path, record in tree.items()}
    for path in sorted(records, reverse=True):
        place, kept = Path(path), STATE / "replaced" / path.lstrip("/")
        if os.path.lexists(kept):
            pending = place.with_name(f".{place.name}.stacklab-new")
            _copy(kept, pending)
            pending.replace(place)
        elif records[path]["kind"] == "directory":
            if records[path].get("made"):
                with contextlib.suppress(OSError):  # not empty: the service's, and purged with it
                    place.rmdir()
        elif not path.startswith(str(STATE)) and place != PROGRAM:
            place.unlink(missing_ok=True)
    shutil.rmtree(STATE / "replaced", ignore_errors=True)
    manifest.unlink(missing_ok=True)


def purge(ledger: Ledger, entry: dict[str, Any]) -> None:
    """Purge the packages of an entry, and remove the folders, users and groups that came with them.

    What only they can tell is booked before the first goes: apt goes on when we are killed.
    """
    there = Snapshot.take().packages
    gone = [name for name in entry["packages"] if name in there]
    if gone:
        _refuse_needed(gone)
    if "going" not in entry:
        files = _files_of(entry["packages"])
        entry["going"] = {
            "folders": sorted(path for path in files if path.startswith(IN_TREES) and Path(path).is_dir()),
            "units": _units_among(files),
            "etc": [path for path in _etc_files() if (KEPT / path.lstrip("/")).exists()],
        }
        ledger.write()
    going = entry["going"]
    # What has a process or a socket. ExecStop of what has neither may reach far: lvm2's unmounts disks.
    _stop(_in_state("running,listening,waiting,activating", going["units"]))
    _end_processes(entry["users"])
    if gone:
        with _starts_forbidden(), LOG.open("ab") as log:
            _configure_pending(log)  # what was cut off goes as it is
            # A minimal system may lack what Debian calls essential; what came with us goes with us.
            _apt(log, ["apt-get", "-q", "-y", "--allow-remove-essential", "purge", *gone])
    leftover = [name for name in entry["packages"] if name not in there]
    if leftover:  # removed by somebody, and their configuration not
        _quietly("dpkg", "--purge", *leftover)
    _end_processes(entry["users"])
    _remove_folders({*going["folders"], *entry["folders"]}, entry)
    for path in going["etc"]:  # what the owner had there before, a purge takes all the same
        if not os.path.lexists(path):
            _copy(KEPT / path.lstrip("/"), Path(path))
    for user in entry["users"]:
        _quietly("userdel", user)
    for group in entry["groups"]:
        _quietly("groupdel", group)
    _quietly("systemctl", "daemon-reload")
    _stop(_in_state("active,activating", going["units"]))  # nothing is left of what they would run
    if "libpam-systemd" in entry["packages"]:
        _stop(_managers_of_users())
    if failed := _in_state("failed", going["units"]):
        _quietly("systemctl", "reset-failed", *failed)


def _units_among(files: Iterable[str]) -> list[str]:
    """The units among files of packages, but those in whose place the owner has one."""
    names = {Path(path).name for path in files if Path(path).parent.as_posix().endswith("/systemd/system")}
    return sorted(
        name for name in names if not any(os.path.lexists(folder / name) for folder in OWNERS_UNITS)
    )


def _stop(units: Sequence[str]) -> None:
    if units:
        _quietly("systemctl", "stop", *units)


def _in_state(states: str, units: Iterable[str]) -> list[str]:
    """Which of the units, or of their instances where they are templates, are in one of the states."""
    wanted = set(units)
    listed = _output(["systemctl", "list-units", f"--state={states}", "--plain", "--no-legend"], check=False)
    names = [line.split()[0] for line in listed.splitlines() if line.strip()]
    return [name for name in names if {name, re.sub("@.*[.]", "@.", name)} & wanted]


def _managers_of_users() -> list[str]:
    """The units that pam_systemd(8) started for users who logged in, but the one we run below."""
    ours = Path("/proc/self/cgroup").read_text()
    lingering = {path.name for path in LINGER.glob("*")}
    found = []
    for name in _in_state("active", ["user@.service"]):
        with contextlib.suppress(KeyError, ValueError):
            user = pwd.getpwuid(int(name.partition("@")[2].partition(".")[0])).pw_name
            if user not in lingering and name not in ours:
                found.append(name)
    return found


def _remove_caches(absent: Iterable[str]) -> None:
    """Remove the caches that were not there before; a folder with more in it stays."""
    for path in absent:
        if path == CACHES[0]:
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                Path(path).rmdir()


def _refuse_needed(packages: Sequence[str]) -> None:
    """Raises Trouble when others than the booked packages would go: they are the owner's."""
    planned = _output(["apt-get", "-s", "-q", "purge", *packages])
    lines = (line.split() for line in planned.splitlines() if line.startswith(("Purg ", "Remv ")))
    others = sorted({words[1].partition(":")[0] for words in lines} - set(packages))
    if others:
        raise Trouble(
            f"installed since, and in need of what stacklab added: {', '.join(others)}; remove them first"
        )


def _files_of(packages: Iterable[str]) -> set[str]:
    """The files and folders of packages."""
    names = list(packages)
    return set(_output(["dpkg-query", "--listfiles", *names], check=False).splitlines()) if names else set()


def _etc_files() -> list[str]:
    return _output(["find", "/etc", "-xdev", "-type", "f"]).splitlines()


def _keep_etc() -> None:
    """Keep the host's configuration as it is before the first package comes."""
    shutil.rmtree(KEPT, ignore_errors=True)
    KEPT.mkdir(mode=0o700)
    subprocess.run(["cp", "--archive", "--one-file-system", "/etc", str(KEPT)], check=True)


def _copy(source: Path, target: Path) -> None:
    """Copy a file or link with owner, mode and times."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    shutil.copy2(source, target, follow_symlinks=False)
    status = source.lstat()
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)


def _remove_folders(folders: Iterable[str], entry: dict[str, Any]) -> None:
    """Remove folders that came with packages and outlive them, unless a package that stays has them, too.

    And whatever else there is of the users that came with them.
    """
    for user in entry["users"]:
        for tree in (*TREES, "/run"):
            found = _output(["find", tree, "-xdev", "-user", user, "-prune", "-print"], check=False)
            folders = {*folders, *found.splitlines()}
    for path in sorted(folders):
        place = Path(path)
        if (
            not os.path.lexists(place)
            or subprocess.run(["dpkg-query", "--search", path], capture_output=True, check=False).returncode
            == 0
        ):
            continue
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)


def _end_processes(users: Iterable[str]) -> None:
    """End what still runs as one of these users: no unit has it, and it would keep the user from going."""
    ids = set()
    for user in users:
        with contextlib.suppress(KeyError):
            ids.add(pwd.getpwnam(user).pw_uid)
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid in ids:
                os.kill(int(folder.name), signal.SIGKILL)


def units_of(services: set[str], folder: Path = STATE) -> list[str]:
    """The units of the steps of services, of all where none is named; the last started first.

    A unit that a service which stays has, too, is not among them.
    """
    steps = [step for name in ("steps.json", "final.json") for step in _read(folder / name)]
    mine, others = [], set()
    for step in steps:
        if not services or step["id"].partition("/")[0] in services:
            mine += [unit for unit in step.get("units", ()) if unit not in mine]
        else:
            others.update(step.get("units", ()))
    return [unit for unit in reversed(mine) if unit not in others]


def _read(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text()) if file.exists() else []


@contextlib.contextmanager
def _starts_forbidden() -> Iterator[None]:
    """Meanwhile no package starts a service. A policy that the owner has is put back."""
    kept = STATE / "policy-rc.d"
    if POLICY.exists() and PLACED not in POLICY.read_text(errors="replace"):
        shutil.copy2(POLICY, kept)
    POLICY.write_text(f"#!/bin/sh\n# {PLACED} while it installs packages\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        _allow_starts()


def _allow_starts() -> None:
    kept = STATE / "policy-rc.d"
    if kept.exists():
        shutil.move(kept, POLICY)
    elif POLICY.exists() and PLACED in POLICY.read_text(errors="replace"):
        POLICY.unlink()


def _links() -> list[str]:
    """What is enabled: the links by which a unit starts with another."""
    return sorted(str(path) for kind in ("wants", "requires") for path in LINKS.glob(f"*.{kind}/*"))


def _folders() -> list[str]:
    depth = ["-maxdepth", str(DEPTH), "-type", "d", "-not", "-path", f"{STATE}*"]
    return sorted(
        _output(
            ["find", *[tree for tree in TREES if Path(tree).is_dir()], "-xdev", *depth], check=False
        ).splitlines()
    )


def _apt(log: Any, argv: Sequence[str]) -> None:
    """Run apt or dpkg to its end, whoever still listens. Raises Trouble with the end of what it said."""
    lock = ["--option=DPkg::Lock::Timeout=300", "--option=Dpkg::Use-Pty=0"] if argv[0] == "apt-get" else []
    log.write(f"\n$ {' '.join(argv)}\n".encode())
    log.flush()
    offset = LOG.stat().st_size
    done = subprocess.run(
        [argv[0], *lock, *argv[1:]],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=_environment(),
        start_new_session=True,
        check=False,
    )
    if done.returncode:
        with LOG.open("rb") as said:
            said.seek(offset)
            tail = said.read().decode(errors="replace").splitlines()[-TAIL:]
        raise Trouble("\n".join((f"`{' '.join(argv[:3])} ...` ended with {done.returncode}", *tail)))


def _packages() -> dict[str, str]:
    """The status of every package that dpkg knows, by name: "installed" when nothing is wrong with it.

    Of several architectures, that which is there counts.
    """
    show = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n"]
    pairs = [line.partition(" ") for line in _output(show).splitlines()]
    return {name: status for name, _, status in sorted(pairs, key=lambda pair: pair[2] not in NOT_THERE)}


def _configure_pending(log: Any) -> None:
    """Configure what can be; what a package needs may be missing."""
    with contextlib.suppress(Trouble):
        _apt(log, ["dpkg", "--configure", "--pending"])


def _mend(log: Any) -> None:
    """Complete what was cut off. Raises Trouble where apt cannot."""
    _configure_pending(log)
    # What is the owner's is not taken away for it.
    mend = ["apt-get", "-q", "-y", "--no-install-recommends", "--no-remove", *CONFIGURATION_STAYS]
    _apt(log, [*mend, "--fix-broken", "install"])


def _environment() -> dict[str, str]:
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "HOME": "/root",
        "DEBIAN_FRONTEND": "noninteractive",
        "APT_LISTCHANGES_FRONTEND": "none",
        "NEEDRESTART_MODE": "l",
        "SUDO_FORCE_REMOVE": "yes",  # it is removed only where it was not before
    }


def _output(argv: Sequence[str], *, check: bool = True) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=_environment())
    if check and done.returncode:
        raise Trouble(f"`{argv[0]}`: {done.stderr.strip()}")
    return done.stdout


def _quietly(*argv: str) -> None:
    subprocess.run(argv, capture_output=True, check=False, env=_environment())


def _switch(verb: str) -> None:
    """Stop or start the units of all services, in the order that fits."""
    units = units_of(set())
    if units:
        done = subprocess.run(
            ["systemctl", verb, *(units if verb == "stop" else reversed(units))],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Trouble(f"systemctl {verb}: {done.stderr.strip()}")


def main(arguments: Sequence[str]) -> None:
    """Do what the arguments say."""
    verb, words = arguments[0], list(arguments[1:])
    if os.geteuid() != 0:
        raise Trouble("only root may do this")
    # The one who asked may go away; a purge in the middle of its work is worse than one that nobody sees.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    for folder in (STATE, LOG.parent):
        if verb == "open" or STATE.exists():
            folder.mkdir(parents=True, exist_ok=True)
    if not STATE.exists():
        return
    with (Path("/run") / "stacklab-ledger.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ledger = Ledger()
        verbs: dict[str, Callable[[], None]] = {
            "open": lambda: ledger.open(words[0]),
            "install": lambda: install(ledger, words[0], words[1:]),
            "retire": lambda: retire(words),
            "forget": lambda: forget(words),
            "undo": lambda: undo(ledger, words),
            "stop": lambda: _switch("stop"),
            "start": lambda: _switch("start"),
        }
        verbs[verb]()
    if not STATE.exists():
        Path("/run/stacklab-ledger.lock").unlink(missing_ok=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Trouble as trouble:
        sys.exit(str(trouble))
