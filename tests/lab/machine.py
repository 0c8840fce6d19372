"""What a lab could leave behind on the machine, compared before and after."""

import os
import re
import subprocess
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

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
_LAB_GROUP = re.compile(r"/stacklab/([^/]+)")
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
_KINDS = ("processes", "namespaces", "mounts", "interfaces", "routes", "firewall", "cgroups", "files")
SETTLE_SECONDS = 10.0


@dataclass(frozen=True)
class Machine:
    """A machine at one moment, as sets of words that a person can read.

    labs: the labs that ran then; what is theirs is left out of the sets, for it comes and goes.
    """

    labs: frozenset[str]
    processes: frozenset[str]
    namespaces: frozenset[str]
    mounts: frozenset[str]
    interfaces: frozenset[str]
    routes: frozenset[str]
    firewall: frozenset[str]
    cgroups: frozenset[str]
    files: frozenset[str]

    @classmethod
    def look(cls, *, beside: Collection[str] | None = None, ignore: Iterable[Path] = ()) -> "Machine":
        """The machine as it is now.

        beside: labs that are none of our business; by default all that run. ignore: files of the tests.
        """
        groups = list(_groups())
        running = {found[1] for group in groups if (found := _LAB_GROUP.search(group))}
        labs = frozenset(running if beside is None else beside)
        ignored = tuple(map(str, ignore))
        return cls(
            labs=labs,
            processes=frozenset(_processes(labs)),
            namespaces=frozenset(_namespaces(labs)),
            mounts=frozenset(line.split()[4] for line in _text("/proc/self/mountinfo").splitlines()),
            interfaces=frozenset(path.name for path in Path("/sys/class/net").iterdir()),
            routes=frozenset(_routes()),
            firewall=frozenset(_firewall()),
            cgroups=frozenset(group for group in groups if not _is_of(labs, group)),
            files=frozenset(name for name in _files() if not (ignored and name.startswith(ignored))),
        )

    def left_over(self, before: "Machine") -> dict[str, list[str]]:
        """What differs from an earlier look, by kind; what came is marked with + and what went with -."""
        found = {}
        for kind in _KINDS:
            now, then = getattr(self, kind), getattr(before, kind)
            changes = [f"+ {each}" for each in now - then]
            if kind not in ("processes", "namespaces"):  # those of others may end meanwhile
                changes += [f"- {each}" for each in then - now]
            if changes:
                found[kind] = sorted(changes)
        return found


def left_over_since(before: Machine, *, ignore: Iterable[Path] = ()) -> dict[str, list[str]]:
    """What differs from `before`, after what is only short-lived has had 10 s to go."""
    ignored = tuple(ignore)
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        found = Machine.look(beside=before.labs, ignore=ignored).left_over(before)
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


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


def _processes(labs: Collection[str]) -> Iterable[str]:
    """The processes in a lab's control groups, and those that run a program which labs run."""
    for folder in Path("/proc").glob("[0-9]*"):
        words = _text(folder / "cmdline").replace("\0", " ").strip()
        group = _text(folder / "cgroup")
        ours = _LAB_GROUP.search(group) or _PROGRAMS.search(words.partition(" ")[0])
        if words and ours and not _is_of(labs, group):
            yield f"{folder.name} {words[:100]}"


def _namespaces(labs: Collection[str]) -> Iterable[str]:
    for folder in Path("/proc").glob("[0-9]*"):
        if _is_of(labs, _text(folder / "cgroup")):
            continue
        for kind in _NAMESPACES:
            try:
                yield str((folder / "ns" / kind).readlink())
            except OSError:
                continue


def _routes() -> Iterable[str]:
    for family in ("-4", "-6"):
        yield from _output("ip", family, "route", "show", "table", "all")
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
