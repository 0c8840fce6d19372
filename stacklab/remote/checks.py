"""What a lab needs of a host, judged over facts: each check says what is wrong, and what to do about it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from stacklab.blueprint import Blueprint, parts_on
from stacklab.host.checks import Finding, State
from stacklab.model.release import Release
from stacklab.provide.provider import Node
from stacklab.remote.facts import Facts

ARCHITECTURE = "amd64"
SKEW_SECONDS = 5.0
SYSTEM_MEMORY = 300  # MiB: systemd, sshd, Python
PACKAGES_DISK = 4096  # MiB: the packages of layer 1, downloaded and installed
Complaint = tuple[str, str]
"""What is wrong, and what to do about it."""


@dataclass(frozen=True)
class Coming:
    """A service that is still to come to a host: its units there, and what it takes, in MiB."""

    units: frozenset[str]
    memory: int
    disk: int


@dataclass(frozen=True)
class Wanted:
    """What a lab wants of one host. Sizes in MiB.

    lab: the name under which the host knows it. packages, units, ports: of all services of the host. clouds:
    the packages among them that are OpenStack itself. coming: the services that are still to come.
    """

    node: Node
    release: Release
    lab: str
    packages: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    ports: tuple[tuple[int, str], ...] = ()
    clouds: frozenset[str] = frozenset()
    databases: frozenset[str] = frozenset()
    coming: tuple[Coming, ...] = ()
    online: bool = True


def wanted(blueprint: Blueprint, node: Node, lab: str, *, online: bool) -> Wanted:
    """What a lab wants of one of its hosts."""
    parts = [(service, part) for service in blueprint.services for part in parts_on(service, node).values()]
    coming = {
        service.name: service for service, _ in parts if service.name not in blueprint.settings.services
    }
    clouds = {
        package
        for service, part in parts
        if service.database or service.identity.services
        for package in part.packages
        if not package.startswith("python3-")
    }
    return Wanted(
        node=node,
        release=blueprint.release,
        lab=lab,
        packages=blueprint.packages(blueprint.services, node),
        units=tuple(dict.fromkeys(unit for _, part in parts for unit in part.units)),
        ports=tuple((port, service.name) for service, part in parts for port in part.ports),
        clouds=frozenset(clouds),
        databases=frozenset(
            name for service, _ in parts if service.database for name in service.database.names
        ),
        coming=tuple(
            Coming(
                frozenset(unit for part in parts_on(service, node).values() for unit in part.units),
                service.needs.memory,
                service.needs.disk,
            )
            for service in coming.values()
        ),
        online=online,
    )


def _distribution(facts: Facts, lab: Wanted) -> Iterator[Complaint]:
    release = lab.release
    if (facts.distribution, facts.suite) != (release.distribution, release.suite):
        there = f"{facts.distribution} {facts.suite}".strip() or "of a kind that cannot be told"
        need = f"{release.distribution} {release.suite}"
        yield f"the system is {there}, and release {release.name} is of {need}", f"install {need} on it"


def _architecture(facts: Facts, lab: Wanted) -> Iterator[Complaint]:
    if facts.architecture != ARCHITECTURE:
        yield f"the machine is {facts.architecture}, not {ARCHITECTURE}", "take another machine"


def _privileges(facts: Facts, lab: Wanted) -> Iterator[Complaint]:
    if facts.uid != 0:
        user = lab.node.user
        yield (
            f"the user '{user}' is neither root nor may it use sudo without a password",
            f"echo '{user} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/{user}, or another `user`",
        )


def _system(facts: Facts, lab: Wanted) -> Iterator[Complaint]:
    if not facts.systemd:
        yield "it does not run systemd", "boot it with systemd"
    if not facts.python:
        yield "it has no Python, which Ansible needs", "apt-get install python3"


def _packages(facts: Facts, lab: Wanted) -> Iterator[Complaint]:
    if facts.dpkg_broken:
        yield (
            "packages on it are half installed",
            "dpkg --configure --pending && apt-get --fix-broken install",
        )


def _name(facts: Facts, lab: Wanted) -> Iterator[Complaint]:
    name, node = facts.name.partition(".")[0], lab.node
    if name != node.name:
        yield (
            f"its host name is '{name}', and the topology calls it '{node.name}'",
            f"call it '{name}' in the topology: OpenStack's services report by it",
        )
    if not facts.resolves:
        yield (
            f"its own name '{facts.name}' does not resolve on it",
            f"add it to its /etc/hosts: {node.address} {name}",
        )


def _address(facts: Facts, lab: Wanted) -> Iterator[Complaint]:
    address = lab.node.address
    mine = [each for listed in facts.addresses.values() for each in listed]
    if address not in mine:
        there = ", ".join(each for each in mine if not each.startswith("127.")) or "none"
        yield (
            f"none of its interfaces has the address {address}; they have: {there}",
            "name the address that the hosts reach each other by; translated ones (NAT) do not serve",
        )


def _size(facts: Facts, lab: Wanted) -> Iterator[Complaint]:
    node = lab.node
    if facts.cpus < node.cpus:
        yield f"it has {_count(facts.cpus, 'CPU')}, and the topology asks for {node.cpus}", "see `cpus`"
    if facts.memory < node.memory:
        yield (
            f"it has {_mib(facts.memory)} of memory, and the topology asks for {_mib(node.memory)}",
            "see `memory`",
        )
    memory, disk = _still_needed(facts, lab)
    if facts.available < memory:
        yield (
            f"{_mib(facts.available)} of memory are free, and its services take {_mib(memory)}",
            "end other programs, or leave services out with --without",
        )
    need = disk if _is_part(facts, lab) else max(disk, node.disk)
    if facts.disk < need:
        yield f"{_mib(facts.disk)} are free in /var/lib, and {_mib(need)} are needed", "make room"


def _is_part(facts: Facts, lab: Wanted) -> bool:
    """Whether a host is part of this lab already."""
    return bool(facts.lab) and facts.lab == lab.lab


def _still_needed(facts: Facts, lab: Wanted) -> tuple[int, int]:
    """The memory and the room that services on a host still need.

    Those that a climb which was cut off has brought up have theirs, and the packages are there.
    """
    active = {unit.name for unit in facts.units if unit.active and _is_part(facts, lab)}
    left = [each for each in lab.coming if not each.units or not each.units <= active]
    begins = bool(left) and len(left) == len(lab.coming)
    memory = sum(each.memory for each in left) + SYSTEM_MEMORY * begins
    return memory, sum(each.disk for each in left) + PACKAGES_DISK * begins


def _clock(facts: Facts, lab: Wanted) -> Iterator[Complaint]:
    if abs(facts.skew) > SKEW_SECONDS:
        word = "ahead of" if facts.skew > 0 else "behind"
        yield (
            f"its clock is {abs(facts.skew):.0f} s {word} this machine's: tokens would not be valid",
            "apt-get install systemd-timesyncd, or set the clock",
        )


def _mirror(facts: Facts, lab: Wanted) -> Iterator[Complaint]:
    if not lab.online or facts.uid != 0 or facts.distribution != lab.release.distribution:
        return
    suite = lab.release.suite
    if not facts.mirrors:
        yield f"its apt has no archive with the suite {suite}", "name one in /etc/apt/sources.list.d/"
    elif all(facts.mirrors.values()):
        uri, why = next(iter(facts.mirrors.items()))
        yield f"its mirror does not answer: {uri} ({why})", "see its network and its apt configuration"


def _ports(facts: Facts, lab: Wanted) -> Iterator[Complaint]:
    for port, service in dict(lab.ports).items():
        if port in facts.ports:
            by = f" by {facts.ports[port]}" if facts.ports[port] else ""
            yield f"port {port} of {service} is taken{by}", "end that program, or move it to another port"


def _services(facts: Facts, lab: Wanted) -> Iterator[Complaint]:
    for unit in facts.units:
        if unit.active or unit.enabled:
            word = "runs" if unit.active else "is enabled"
            yield f"{unit.name} {word} already, and not by this lab", f"systemctl disable --now {unit.name}"


def _openstack(facts: Facts, lab: Wanted) -> Iterator[Complaint]:
    signs = [f"the package {name}" for name in sorted(facts.packages & lab.clouds)]
    signs += [f"the database {name}" for name in sorted(lab.databases.intersection(facts.databases))]
    signs += facts.foreign
    if signs:
        yield (
            f"there is an OpenStack on it already: {', '.join(signs)}",
            "take a machine without one; two of them would break each other",
        )
    others = sorted(set(facts.databases) - lab.databases)
    if others and "mariadb" in lab.units:
        yield (
            f"there are databases of MariaDB or MySQL on it: {', '.join(others)}",
            "move them elsewhere: /var/lib/mysql becomes the cloud's, and goes with it",
        )


def _other_lab(facts: Facts, lab: Wanted) -> Iterator[Complaint]:
    if facts.lab:
        yield (
            f"it is part of the lab '{facts.lab}' already",
            "destroy that lab where it was made, or on the host: python3 /usr/lib/stacklab/ledger.py undo",
        )


def _interface(facts: Facts, lab: Wanted) -> Iterator[Complaint]:
    interface = lab.node.provider_interface
    if not interface:
        return
    advice = "name one that carries nothing else in `interfaces.provider`"
    if interface not in facts.interfaces:
        there = ", ".join(each for each in facts.interfaces if each != "lo")
        yield f"it has no interface '{interface}'; it has: {there}", advice
    elif not facts.lab or facts.lab != lab.lab:
        if facts.addresses.get(interface) or interface in facts.default_interfaces:
            listed = ", ".join(facts.addresses.get(interface, ["the default route"]))
            yield f"the interface '{interface}' is in use: {listed}; it would be lost to a bridge", advice
        if interface in facts.masters:
            yield f"the interface '{interface}' is part of {facts.masters[interface]} already", advice


CHECKS: dict[str, Callable[[Facts, Wanted], Iterator[Complaint]]] = {
    "distribution": _distribution,
    "architecture": _architecture,
    "privileges": _privileges,
    "system": _system,
    "name": _name,
    "address": _address,
    "size": _size,
    "clock": _clock,
    "mirror": _mirror,
    "interface": _interface,
}
# Asked only of a host that is not part of this lab yet: later they are ours, and so is what was cut off.
FOREIGN: dict[str, Callable[[Facts, Wanted], Iterator[Complaint]]] = {
    "lab": _other_lab,
    "packages": _packages,
    "ports": _ports,
    "services": _services,
    "openstack": _openstack,
}


def judge(facts: Facts, lab: Wanted) -> list[Finding]:
    """What speaks against a host, all of it. `warning`: what stacklab could not undo there."""
    mine = _is_part(facts, lab)
    checks = CHECKS if mine else {**CHECKS, **FOREIGN}
    found = [
        Finding(name, State.FAILED, what, advice)
        for name, check in checks.items()
        for what, advice in check(facts, lab)
    ]
    if facts.upgrades and not mine:
        listed = ", ".join(f"{name} {old} -> {new}" for name, old, new in facts.upgrades)
        what = f"packages that it has are replaced by newer ones, and stay so: {listed}"
        found.append(Finding("packages", State.WARNING, what))
    return found


def lines_of(findings: Sequence[Finding]) -> Iterator[str]:
    """Findings as lines of an error: what is wrong, and below it what to do."""
    for finding in findings:
        yield f"  {finding.name}: {finding.what}"
        if finding.advice:
            yield f"    {finding.advice}"


def _mib(mib: int) -> str:
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib} MiB"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
