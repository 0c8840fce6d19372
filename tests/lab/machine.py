"""What a lab could leave behind on the machine, compared before and after."""

import os
import re
import subprocess
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from stacklab.lab.namespace import Namespace

# Only entries with one of these words count in folders that other programs use as well.
_WORDS = re.compile(r"stacklab|ansible|libvirt|virtlog|qemu|dnsmasq|openstack|ovs|ovn")
_SHARED = ("/etc", "/run", "/tmp", "/var/tmp", "/var/lib", "/var/log", "/var/cache", "/root", "/dev/shm")
_OWN = (
    "/etc/libvirt",
    "/run/libvirt",
    "/run/netns",
    "/var/cache/libvirt",
    "/var/lib/libvirt",
    "/var/log/libvirt",
)
# Programs that a lab runs; one of them that is new and lives on is a leftover wherever it is.
_PROGRAMS = re.compile(r"libvirt|virtlog|qemu|dnsmasq|ansible|ovs|ovn|ssh-agent|ssh: ")
_LAB_GROUP = re.compile(r"/stacklab/([^/\n]+)")
_SERVICE = re.compile(r"/([^/\n]+\.service)(?=/|$)", re.MULTILINE)
_STATE = re.compile(r"(?:^|\0)STACKLAB_STATE=([^\0]*)")
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
_KINDS = ("processes", "namespaces", "mounts", "interfaces", "routes", "firewall", "cgroups", "files")
SETTLE_SECONDS = 10.0
TESTS_FOLDER = "/stacklab-test-"  # ours, and those of others who test on this machine


@dataclass(frozen=True)
class Machine:
    """A machine at one moment, as sets of words that a person can read.

    labs: the control groups of labs of the tests that were left out. shared: labs of others ran.
    """

    labs: frozenset[str]
    shared: bool
    processes: frozenset[str]
    namespaces: frozenset[str]
    mounts: frozenset[str]
    interfaces: frozenset[str]
    routes: frozenset[str]
    firewall: frozenset[str]
    cgroups: frozenset[str]
    files: frozenset[str]

    @classmethod
    def look(cls, state: Path, labs: Collection[str] = ()) -> "Machine":
        """The machine as it is now, without the folder of the tests.

        state: the state of the tests, in their folder. labs: control groups of its labs to leave out. Labs
        with another state are left out, too: they come and go, and are none of our business.
        """
        groups = list(_groups())
        running = frozenset(found[1] for group in groups if (found := _LAB_GROUP.search(group)))
        others = {group for group in running if not _is_below(state, group)}
        beside = others.union(labs)
        return cls(
            labs=frozenset(labs),
            shared=bool(others),
            processes=frozenset(_processes(beside, state)),
            namespaces=frozenset(_namespaces(beside, state)),
            mounts=frozenset(line.split()[4] for line in _text("/proc/self/mountinfo").splitlines()),
            interfaces=frozenset(path.name for path in Path("/sys/class/net").iterdir()),
            routes=frozenset(_routes()),
            firewall=frozenset(_firewall()),
            cgroups=frozenset(group for group in groups if not _is_of(beside, group)),
            files=frozenset(name for name in _files() if TESTS_FOLDER not in name),
        )

    def left_over(self, before: "Machine") -> dict[str, list[str]]:
        """What differs from an earlier look, by kind; what came is marked with + and what went with -."""
        found = {}
        above_others = {group for group in self.cgroups | before.cgroups if group.endswith("/stacklab")}
        for kind in _KINDS:
            now, then = getattr(self, kind), getattr(before, kind)
            if kind == "cgroups" and (self.shared or before.shared):
                now, then = now - above_others, then - above_others
            changes = [f"+ {each}" for each in now - then]
            if kind not in ("processes", "namespaces"):  # those of others may end meanwhile
                changes += [f"- {each}" for each in then - now]
            if changes:
                found[kind] = sorted(changes)
        return found


def left_over_since(before: Machine, state: Path) -> dict[str, list[str]]:
    """What differs from `before`, after what is only short-lived has had 10 s to go."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        found = Machine.look(state, before.labs).left_over(before)
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


Family = dict[tuple[int, str], str]
"""Processes by their id and start time, with their command lines."""


def descendants(pid: int) -> Family:
    """The process and all that it has started, and these have, and are still there."""
    parents: dict[int, list[tuple[int, str]]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        parent, start = _parent_and_start(int(folder.name))
        parents.setdefault(parent, []).append((int(folder.name), start))
    found, left = {}, [(pid, _parent_and_start(pid)[1])]
    while left:
        process = left.pop()
        found[process] = _text(f"/proc/{process[0]}/cmdline").replace("\0", " ").strip()
        left += parents.get(process[0], ())
    return found


def alive(family: Family) -> list[str]:
    """The command lines of those that still run, but for the sealing of images, which is to outlive `up`."""
    return [
        words
        for (pid, start), words in family.items()
        if _parent_and_start(pid)[1] == start and "stacklab.images.digest" not in words
    ]


def name_of(pid: int) -> str:
    """The name of a process's program, "" when it has ended."""
    return _text(f"/proc/{pid}/comm").strip()


def parent_of(pid: int) -> int:
    """The id of a process's parent, 0 when it has ended."""
    return _parent_and_start(pid)[0]


def await_end(family: Family, seconds: float = SETTLE_SECONDS) -> None:
    """Wait until all of them have ended; fails the test with those that have not."""
    deadline = time.monotonic() + seconds
    while left := alive(family):
        if time.monotonic() > deadline:
            pytest.fail("\n".join((f"still there after {seconds:.0f} s:", *left)), pytrace=False)
        time.sleep(0.2)


def _parent_and_start(pid: int) -> tuple[int, str]:
    """Fields 4 and 22 of /proc/PID/stat; a process that has ended, zombies among them, has no start time."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (int(fields[1]), fields[19]) if fields and fields[0] != "Z" else (0, "")


def _is_below(state: Path, group: str) -> bool:
    """Whether a control group is of a lab with that state; its name ends with a hash of the lab's folder."""
    name = group.rpartition("-")[0]
    return Namespace(state / "labs" / name, name).group == group


def _text(file: str | Path) -> str:
    try:
        return Path(file).read_text(errors="replace")
    except OSError:  # it has ended, or there is none
        return ""


def _output(*argv: str) -> list[str]:
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()
    except FileNotFoundError:
        return []


def _is_of(labs: Collection[str], group: str) -> bool:
    return any(name in labs for name in _LAB_GROUP.findall(group))


def _processes(labs: Collection[str], state: Path) -> Iterable[str]:
    """The processes in a lab's control groups, and those that run a program which labs run.

    Unless they belong to another lab, or to the making of one.
    """
    for folder in Path("/proc").glob("[0-9]*"):
        words = _text(folder / "cmdline").replace("\0", " ").strip()
        group = _text(folder / "cgroup")
        ours = _LAB_GROUP.search(group) or _PROGRAMS.search(words.partition(" ")[0])
        if words and ours and not _is_of(labs, group) and not _has_other_state(folder, state):
            yield f"{folder.name} {words[:100]}"


def _has_other_state(process: Path, state: Path) -> bool:
    """Whether a process, by its folder in /proc, was started with another state than the tests'."""
    whose = _STATE.search(_text(process / "environ"))
    return whose is not None and whose[1] != str(state)


def _namespaces(labs: Collection[str], state: Path) -> Iterable[str]:
    """The namespaces of all processes but those of other labs, and of services of the machine.

    These may start meanwhile, and systemd gives some of them a namespace (PrivateTmp=).
    """
    ours = set(_SERVICE.findall(_text("/proc/self/cgroup")))
    for folder in Path("/proc").glob("[0-9]*"):
        group = _text(folder / "cgroup")
        has_ended = not _parent_and_start(int(folder.name))[1]
        is_of_machine = not _LAB_GROUP.search(group) and not ours.issuperset(_SERVICE.findall(group))
        if has_ended or is_of_machine or _is_of(labs, group) or _has_other_state(folder, state):
            continue
        for kind in _NAMESPACES:
            try:
                yield str((folder / "ns" / kind).readlink())
            except OSError:
                continue


def _routes() -> Iterable[str]:
    """The routes and rules, without the seconds that what a router has told still holds for."""
    left = re.compile(r" expires [0-9]+sec")
    for family in ("-4", "-6"):
        yield from (left.sub("", line) for line in _output("ip", family, "route", "show", "table", "all"))
        yield from _output("ip", family, "rule")


def _firewall() -> Iterable[str]:
    """The rules of nftables and of both kinds of iptables, without comments and counters."""
    counters = re.compile(r"packets [0-9]+ bytes [0-9]+|\[[0-9]+:[0-9]+\]")
    for command in ("nft list ruleset", "iptables-save", "ip6tables-save", "iptables-legacy-save"):
        rules = [line for line in _output(*command.split()) if not line.startswith("#")]
        for number, rule in enumerate(rules):
            yield f"{command} {number}: {counters.sub('', rule)}"


def _groups() -> Iterable[str]:
    words = re.compile(r"stacklab|machine|libvirt")
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        yield from (path for name in names if words.search(path := f"{folder}/{name}"))


def _files() -> Iterable[str]:
    for folder in _SHARED:
        found = Path(folder).iterdir() if Path(folder).is_dir() else ()
        yield from (str(path) for path in found if _WORDS.search(path.name))
    for folder in _OWN:
        for parent, folders, files in os.walk(folder):
            yield from (f"{parent}/{name}" for name in (*folders, *files))
