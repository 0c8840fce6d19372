"""What is known of a host: read from the lines that templates/hosts/probe prints there."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from stacklab.home import data_dir


@dataclass(frozen=True)
class Unit:
    """A systemd unit of the host: its state, and whether it is enabled."""

    name: str
    active: bool
    enabled: bool


@dataclass
class Facts:
    """A host, as the checks see it. Sizes in MiB.

    skew: how many seconds its clock is ahead of ours. lab: the lab that it is part of, "" for none. ports:
    those that are listened on, with the name of the program where it is known. addresses: by interface.
    masters: interfaces that are part of a bridge or bond, with its name. mirrors: the archives of the suite
    that its apt has, with "" or what is wrong. upgrades: package, version, and the version that would replace
    it. foreign: signs of another OpenStack, in words.
    """

    distribution: str = ""
    suite: str = ""
    architecture: str = ""
    uid: int = -1
    name: str = ""
    skew: float = 0.0
    cpus: int = 0
    memory: int = 0
    available: int = 0
    disk: int = 0
    python: bool = False
    systemd: bool = False
    kvm: bool = False
    openvswitch: bool = False
    resolves: bool = False
    lab: str = ""
    dpkg_broken: bool = False
    interfaces: list[str] = field(default_factory=list)
    addresses: dict[str, list[str]] = field(default_factory=dict)
    default_interfaces: list[str] = field(default_factory=list)
    masters: dict[str, str] = field(default_factory=dict)
    ports: dict[int, str] = field(default_factory=dict)
    units: list[Unit] = field(default_factory=list)
    packages: set[str] = field(default_factory=set)
    databases: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    mirrors: dict[str, str] = field(default_factory=dict)
    upgrades: list[tuple[str, str, str]] = field(default_factory=list)
    whole: bool = False


def probe(suite: str, packages: Sequence[str], units: Sequence[str], *, online: bool) -> str:
    """The shell program that prints the facts."""
    settings = {
        "suite": suite,
        "packages": " ".join(packages),
        "units": " ".join(unit if "." in unit else f"{unit}.service" for unit in units),
        "online": "yes" if online else "no",
    }
    head = "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items())
    return head + (data_dir() / "templates" / "hosts" / "probe").read_text()


def read(text: str, before: float, after: float) -> Facts:
    """The facts in what the probe printed. before, after: our clock around it, in seconds."""
    facts = Facts()
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        words = value.split()
        match key:
            case "system" if len(words) == 2:
                facts.distribution, facts.suite = words
            case "clock":
                clock = float(value)
                facts.skew = clock - after if clock > after else min(0.0, clock - before)
            case "architecture" | "name" | "lab":
                setattr(facts, key, value)
            case "uid" | "cpus" | "memory" | "available" | "disk" if value.isdigit():
                setattr(facts, key, int(value))
            case "python" | "systemd" | "kvm" | "openvswitch" | "resolves":
                setattr(facts, key, True)
            case "dpkg":
                facts.dpkg_broken = True
            case "interface":
                facts.interfaces.append(value)
            case "address" if len(words) == 2:
                facts.addresses.setdefault(words[0], []).append(words[1])
            case "default":
                facts.default_interfaces.append(value)
            case "master" if len(words) == 2:
                facts.masters[words[0]] = words[1]
            case "port" if words and words[0].isdigit():
                facts.ports[int(words[0])] = " ".join(words[1:])
            case "hexport":
                facts.ports[int(value, 16)] = ""
            case "unit" if words:
                enabled = "enabled" in words
                facts.units.append(Unit(words[0].removesuffix(".service"), "active" in words, enabled))
            case "package":
                facts.packages.add(value)
            case "database":
                facts.databases.append(value)
            case "foreign":
                facts.foreign.append(value)
            case "mirror":
                facts.mirrors.setdefault(value, "")
            case "mute" if words:
                facts.mirrors[words[0]] = " ".join(words[1:]) or "no answer"
            case "upgrade" if len(words) == 3:
                facts.upgrades.append((words[0], words[1], words[2]))
            case "end":
                facts.whole = True
    return facts
