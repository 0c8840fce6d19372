"""The checks of the host: what a lab needs of this machine, judged over facts, and what to do where it lacks.

`preflight` is what `up` runs before anything is built; `examine` is all of it, for `stacklab doctor`.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from stacklab.blueprint import Blueprint, as_it_stands
from stacklab.errors import HostUnfit, StepFailed
from stacklab.home import Home
from stacklab.host import kvm
from stacklab.host.apt import host_mirror, missing_suite
from stacklab.host.facts import DEVICES, LIBVIRT_DRIVERS, PROGRAMS, Facts, available_memory, gather
from stacklab.lab.cgroups import is_unified
from stacklab.lab.lab import Lab
from stacklab.lab.settings import HOST, LabSettings, patience_of
from stacklab.model.service import Service
from stacklab.provide.elsewhere import parse
from stacklab.render import HostFacts

NODE_MEMORY = 300  # MiB: systemd, sshd, Python, and what stacklab and its libvirtd take themselves
IMAGES_DISK = 4096  # MiB: the base, the packages of layer 1 installed and downloaded, and room to build them
SPARE_DISK = 512  # MiB that stay free on top of all
DISTRIBUTION, VERSIONS = "debian", ("12", "13")


class State(StrEnum):
    """The outcome of a check: `warning` where a lab works less well, `failed` where it does not at all."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Result:
    """What a check found, in one line, and what to do about it unless all is well."""

    state: State
    what: str
    advice: str = ""


@dataclass(frozen=True)
class Needs:
    """What the lab in question takes, in MiB: memory of its services, and room in the folders of stacklab."""

    memory: int = 0
    state: int = 0
    cache: int = 0


@dataclass(frozen=True)
class Check:
    """One check: a name, and a function that judges facts without looking at the machine itself."""

    name: str
    judge: Callable[[Facts, Needs], Result]

    def run(self, facts: Facts, needs: Needs) -> "Finding":
        """Judge the facts."""
        result = self.judge(facts, needs)
        return Finding(self.name, result.state, result.what, result.advice)


@dataclass(frozen=True)
class Finding:
    """The result of a check, with the check's name."""

    name: str
    state: State
    what: str
    advice: str = ""


def _ok(what: str) -> Result:
    return Result(State.OK, what)


def _warning(what: str, advice: str) -> Result:
    return Result(State.WARNING, what, advice)


def _failed(what: str, advice: str) -> Result:
    return Result(State.FAILED, what, advice)


def _root(facts: Facts, needs: Needs) -> Result:
    if facts.user != 0:
        return _failed(f"you are user {facts.user}, not root", "run stacklab with sudo")
    return _ok("you are root")


def _architecture(facts: Facts, needs: Needs) -> Result:
    if facts.architecture != "x86_64":
        return _failed(f"this machine is {facts.architecture}", "labs run on x86_64 (amd64) machines")
    return _ok(facts.architecture)


def _distribution(facts: Facts, needs: Needs) -> Result:
    name = f"{facts.distribution} {facts.version}".strip()
    if facts.distribution != DISTRIBUTION or facts.version not in VERSIONS:
        known = " and ".join(VERSIONS)
        return _warning(f"{name} is not known to work", f"stacklab is tested on Debian {known}")
    return _ok(f"{name}, kernel {facts.kernel}")


def _namespaces(facts: Facts, needs: Needs) -> Result:
    if not {"namespaces", "proc"} <= facts.features:
        return _failed(
            "this machine lets nobody make mount, network and process namespaces",
            "in a container: run it privileged; else use a kernel with namespaces",
        )
    return _ok("mount, network and process namespaces can be made")


def _overlay(facts: Facts, needs: Needs) -> Result:
    if "overlay" not in facts.features:
        return _failed(
            "no overlay can be mounted in one of stacklab's folders",
            "`modprobe overlay`, or set STACKLAB_STATE and STACKLAB_CACHE to folders on ext4, XFS or btrfs",
        )
    return _ok("overlays can be mounted")


def _network(facts: Facts, needs: Needs) -> Result:
    missing = [word for word in ("veth", "bridge") if word not in facts.features]
    if missing:
        words = " and ".join(missing)
        return _failed(f"the kernel makes no network device of kind {words}", f"modprobe {' '.join(missing)}")
    return _ok("veth and bridge devices can be made")


def _tun(facts: Facts, needs: Needs) -> Result:
    if "tun" not in facts.features:
        return _failed("there is no /dev/net/tun, which instances are plugged into", "modprobe tun")
    return _ok("/dev/net/tun is there")


def _devices(facts: Facts, needs: Needs) -> Result:
    missing = [DEVICES[word] for word in ("fuse", "loop") if word not in facts.features]
    if missing:
        words = " and no ".join(missing)
        return _warning(
            f"there is no {words}: packages cannot be put into virtual machines", "modprobe -a fuse loop"
        )
    return _ok("disks of virtual machines can be mounted")


def _cgroups(facts: Facts, needs: Needs) -> Result:
    if not facts.cgroups:
        return _failed("no control groups are mounted", "mount -t cgroup2 cgroup2 /sys/fs/cgroup")
    if not facts.cgroups_writable:
        return _failed("the control groups are read-only", "in a container: run it privileged")
    mode = "v2" if is_unified(list(facts.cgroups)) else "v1"
    if mode == "v1" and any(hierarchy.is_v2 for hierarchy in facts.cgroups):
        mode = "hybrid"
    if "memory" not in facts.controllers:
        return _failed(
            f"control groups ({mode}) without a memory controller",
            "boot with `cgroup_enable=memory` on the kernel's command line",
        )
    if mode == "v1" and not any("name=systemd" in hierarchy.controllers for hierarchy in facts.cgroups):
        return _failed(
            "control groups v1 without the hierarchy name=systemd, which systemd in a node needs",
            "mkdir /sys/fs/cgroup/systemd && "
            "mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd",
        )
    return _ok(f"{mode}, with the memory controller")


def _programs(facts: Facts, needs: Needs) -> Result:
    missing = [name for name in PROGRAMS if name not in facts.programs]
    if missing:
        packages = " ".join(sorted({PROGRAMS[name] for name in missing}))
        return _failed(f"not installed: {', '.join(missing)}", f"./bootstrap, or: apt-get install {packages}")
    return _ok(f"all {len(PROGRAMS)} that labs call are installed")


def _libvirt(facts: Facts, needs: Needs) -> Result:
    missing = [name for name in LIBVIRT_DRIVERS if name not in facts.libvirt_drivers]
    if missing:
        packages = " ".join(f"libvirt-daemon-driver-{name}" for name in missing)
        return _failed(
            f"libvirt has no driver for {' and '.join(missing)}",
            f"./bootstrap, or: apt-get install {packages}",
        )
    return _ok("its lxc, network and qemu drivers are installed")


def _memory(facts: Facts, needs: Needs) -> Result:
    if facts.memory < needs.memory:
        return _failed(
            f"{_size(facts.memory)} of memory are free, and the lab takes {_size(needs.memory)}",
            "`stacklab stop` another lab, end other programs, or leave services out with --without",
        )
    if facts.memory < needs.memory * 1.25:
        return _warning(
            f"{_size(facts.memory)} of memory are free, and the lab takes {_size(needs.memory)}",
            "there is little room for instances",
        )
    return _ok(f"{_size(facts.memory)} are free, {_size(needs.memory)} are needed")


def _disk(facts: Facts, needs: Needs) -> Result:
    # Folders on one file system share its space.
    shared = len({space.device for space in facts.disk}) == 1
    figures = [(space, need) for space, need in zip(facts.disk, (needs.state, needs.cache), strict=False)]
    if shared:
        figures = [(facts.disk[0], needs.state + needs.cache)]
    words = []
    for space, need in figures:
        what = f"{_size(space.free)} are free for {space.folder}, {_size(need + SPARE_DISK)} are needed"
        if space.free < need + SPARE_DISK:
            advice = "make room, or set STACKLAB_STATE and STACKLAB_CACHE to folders on a larger disk"
            return _failed(what, advice)
        words.append(what)
    return _ok("; ".join(words))


def _openvswitch(facts: Facts, needs: Needs) -> Result:
    if facts.openvswitch:
        return _ok("the kernel's datapath is there")
    return _ok("not in the kernel; labs use the datapath in user space")


def _confinement(facts: Facts, needs: Needs) -> Result:
    if facts.apparmor == "enforced":
        return _warning(
            "AppArmor confines libvirtd, and so the libvirtd of a lab",
            "where nodes do not start: aa-complain /usr/sbin/libvirtd",
        )
    if facts.selinux == "enforcing":
        return _warning("SELinux is enforcing", "where nodes do not start: setenforce 0")
    return _ok("neither AppArmor nor SELinux is in the way")


CHECKS = (
    Check("root", _root),
    Check("architecture", _architecture),
    Check("distribution", _distribution),
    Check("programs", _programs),
    Check("libvirt", _libvirt),
    Check("namespaces", _namespaces),
    Check("control groups", _cgroups),
    Check("overlay", _overlay),
    Check("network devices", _network),
    Check("tun", _tun),
    Check("fuse and loop", _devices),
    Check("memory", _memory),
    Check("disk", _disk),
    Check("open vswitch", _openvswitch),
    Check("confinement", _confinement),
)


def judge(facts: Facts, needs: Needs) -> list[Finding]:
    """The findings of all checks that need no more than facts."""
    if facts.user != 0:  # nobody else can try the rest
        checks: Iterable[Check] = (check for check in CHECKS if not _needs_root(check))
    else:
        checks = CHECKS
    return [check.run(facts, needs) for check in checks]


def preflight(
    home: Home, blueprint: Blueprint, running: Collection[str] = (), *, online: bool = True
) -> HostFacts:
    """Check that this machine can build and run the lab, and return what templates may know of it.

    A lab that stands is only looked at for what it still needs. running: the services that run on its nodes.
    Raises HostUnfit with all problems at once.
    A lab of hosts takes nothing of this machine; the hosts have a preflight of their own.
    """
    if blueprint.settings.node_kind == HOST:
        return host_facts(home, blueprint.settings)
    facts = gather([home.state, home.cache])
    needs, settings = needs_beyond(running, home, blueprint), blueprint.settings
    is_climbing = settings.layer < blueprint.target
    here = replace(needs, memory=0, state=0) if settings.connect else needs
    findings = [*judge(facts, here), nodes_finding(blueprint)]
    if settings.connect and is_climbing:
        findings.append(elsewhere_finding(settings.connect, needs))
    if online and is_climbing:
        findings.append(mirror_finding(blueprint.release.distribution, blueprint.release.pockets))
    problems = [finding for finding in findings if finding.state is State.FAILED]
    if problems:
        count = f"{len(problems)} problems" if len(problems) > 1 else "one problem"
        raise HostUnfit(
            f"this machine cannot build the lab: {count}",
            detail="\n".join(f"{problem.name}: {problem.what}\n  {problem.advice}" for problem in problems),
            hint="stacklab doctor",
        )
    return host_facts(home, blueprint.settings)


def refuse_without_memory(lab: Lab, labs: int = 1) -> None:
    """Raises HostUnfit when this machine has no memory for so many labs like this one, which are off.

    Labs of hosts, or of another machine's libvirt, take none here.
    """
    settings = lab.settings
    if not settings.services or settings.node_kind == HOST or settings.connect:
        return
    one = needs_of(as_it_stands(lab).services, images=False, nodes=len(settings.nodes))
    result = _memory(Facts(memory=available_memory()), Needs(memory=one.memory * labs))
    if result.state is State.FAILED:
        raise HostUnfit(result.what, hint=result.advice)


def host_facts(home: Home, settings: LabSettings) -> HostFacts:
    """What templates may know of what the nodes of a lab run on. KVM counts once it is proved (kvm.prove)."""
    kind = settings.node_kind
    if kind == HOST:
        return HostFacts(kvm=bool(settings.hosts_kvm), openvswitch=settings.hosts_openvswitch)
    if kind != "vm":
        # Containers take the userspace datapath everywhere: the kernel's may be gone after the next boot.
        return HostFacts(kvm.works(home.cache), openvswitch=False, patience=patience_of(settings, home.cache))
    if settings.connect:
        works, nested = settings.connect_kvm, settings.connect_nested
    else:
        works, nested = kvm.works(home.cache), kvm.is_nested()
    return HostFacts(
        kvm=nested or not works,  # a processor that QEMU emulates has AMD's SVM: docs/decisions/0025
        openvswitch=True,
        patience=patience_of(settings, home.cache),
    )


def examine(home: Home, needs: Needs, distribution: str, pockets: Sequence[str]) -> list[Finding]:
    """Everything that can be said of this machine: the facts, the mirror, KVM and the labs on it.

    Boots a kernel to prove KVM where there is one at hand; that takes up to 10 s.
    """
    facts = gather([home.state, home.cache])
    return [
        *judge(facts, needs),
        mirror_finding(distribution, pockets),
        kvm_finding(home),
        *([labs_finding(home)] if facts.user == 0 else []),
    ]


def elsewhere_finding(uri: str, needs: Needs) -> Finding:
    """Whether the machine that `--connect` names is reached, and has the memory that the lab still needs."""
    from stacklab.provide.line import look_elsewhere

    name = "connect"
    try:
        machine = look_elsewhere(parse(uri))
    except StepFailed as error:
        return Finding(name, State.FAILED, " ".join((error.message, error.detail)).strip(), error.hint)
    if machine.architecture != "x86_64":
        return Finding(name, State.FAILED, f"{uri} is {machine.architecture}, not x86_64", "take another one")
    if machine.available < needs.memory:
        what = f"{uri} has {_size(machine.available)} of memory left; the lab needs {_size(needs.memory)}"
        return Finding(name, State.FAILED, what, "stop other machines there, or --without some services")
    return Finding(name, State.OK, f"{uri} has {_size(machine.available)} of memory left")


def mirror_finding(distribution: str, pockets: Sequence[str]) -> Finding:
    """Whether the host's mirror answers and carries the suites of a release."""
    name = "mirror"
    advice = "see the machine's apt configuration and network; `--offline` builds from the cache alone"
    try:
        mirror = host_mirror(distribution)
    except HostUnfit as error:
        return Finding(name, State.FAILED, error.message, error.hint)
    problem = missing_suite(mirror, pockets[0])
    if problem:
        return Finding(name, State.FAILED, problem, advice)
    if not mirror.security:
        what = f"carries {pockets[0]}; no security archive is configured"
        return Finding(name, State.WARNING, what, "labs will lack security updates")
    return Finding(name, State.OK, f"carries {pockets[0]}")


def kvm_finding(home: Home) -> Finding:
    """Whether KVM works, proved with the kernel of a guest that was built, or of this machine."""
    name = "kvm"
    slow = "instances are emulated: right, and slower"
    proof = kvm.known(home.cache)
    kernel = kvm.kernel_at_hand(home.cache)
    if kernel and (proof is None or kvm.DEVICE.exists()):
        proof = kvm.prove(home.cache, kernel, again=True)
    if proof is None:
        return Finding(
            name, State.WARNING, "not proved yet", "the first `stacklab up` builds a kernel to try"
        )
    return Finding(name, State.OK if proof.works else State.WARNING, str(proof), "" if proof.works else slow)


def labs_finding(home: Home) -> Finding:
    """The labs of this machine: those that are off, for instance since a reboot, can be started again."""
    labs = Lab.all(home)
    off = [lab.name for lab in labs if lab.namespace.pid() is None]
    if off:
        advice = f"stacklab start --lab {off[0]}, or stacklab destroy --lab {off[0]}"
        return Finding("labs", State.OK, f"{len(labs)} here; off: {', '.join(off)}", advice)
    return Finding("labs", State.OK, f"{len(labs)} here" if labs else "none here")


def needs_of(services: Iterable[Service], *, images: bool, nodes: int = 1) -> Needs:
    """What services take on so many nodes, in MiB; `images`: whether their images are still to be built."""
    wanted = list(services)
    return Needs(
        memory=sum(service.needs.memory for service in wanted) + (NODE_MEMORY * nodes if wanted else 0),
        state=sum(service.needs.disk for service in wanted),
        cache=IMAGES_DISK if images else 0,
    )


def nodes_finding(blueprint: Blueprint) -> Finding:
    """Whether the nodes of the lab, all together, may take as much memory as its services do.

    What a host has is its own business.
    """
    has = sum(node.memory for node in blueprint.nodes)
    wants = sum(service.needs.memory for service in blueprint.services) + NODE_MEMORY * len(blueprint.nodes)
    what = f"the nodes of '{blueprint.settings.topology}' may take {_size(has)}, the lab takes {_size(wants)}"
    if wants <= has or any(node.kind == "host" for node in blueprint.nodes):
        return Finding("nodes", State.OK, what)
    advice = "take a topology with more memory by --topology, or leave services out with --without"
    return Finding("nodes", State.FAILED, what, advice)


def needs_beyond(running: Collection[str], home: Home, blueprint: Blueprint) -> Needs:
    """What the lab still needs of the machine: services that run have all, others that came up have room."""
    images = not any((home.cache / "images").glob("packages-*"))
    off = [service for service in blueprint.services if service.name not in running]
    new = [service for service in off if service.name not in blueprint.settings.services]
    memory = needs_of(off, images=False, nodes=0 if running else len(blueprint.nodes)).memory
    return replace(needs_of(new, images=images), memory=memory)


def _needs_root(check: Check) -> bool:
    return check.judge in (_namespaces, _overlay, _network, _tun, _devices, _cgroups)


def _size(mib: int) -> str:
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib} MiB"
