"""Layer 1 against the floor: cold build, healthy `up`, memory.

    python benchmarks/layer1.py --rounds 3        as root, after ./bootstrap; some ten minutes a round

docs/performance.md says what is compared and why. Prints a table and writes benchmarks/results/layer1.json;
labs and files are made in folders of its own, and removed.
"""

import argparse
import base64
import json
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from stacklab import __version__
from stacklab.home import DEFAULT_CACHE, data_dir
from stacklab.host.apt import host_mirror
from stacklab.images.base import DPKG_OPTIONS, PACKAGES
from stacklab.model.catalog import Catalog

HERE = Path(__file__).parent
LAB = "bench"
# Seconds that `openstack token issue` takes by itself, without what `stacklab exec` costs.
TOKEN_ISSUE = (
    "import subprocess, time; begin = time.monotonic(); "
    "subprocess.run(['openstack', 'token', 'issue'], check=True, stdout=subprocess.DEVNULL); "
    "print(time.monotonic() - begin)"
)
# What stacklab does beyond the floor. Users and endpoints are in it: Nova does not start without its own.
BEYOND = re.compile(r".*/(resources$|final[.])")


@dataclass(frozen=True)
class Place:
    """A folder on a disk for one run: an empty state, and a cache that holds downloaded packages only."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make stacklab work here."""
        return {
            **os.environ,
            "STACKLAB_STATE": str(self.folder / "state"),
            "STACKLAB_CACHE": str(self.folder / "cache"),
        }

    @property
    def packages(self) -> Path:
        """Downloaded packages."""
        return self.folder / "cache" / "packages"

    @property
    def lab(self) -> Path:
        """The folder of the lab."""
        return self.folder / "state" / "labs" / LAB

    def stacklab(self, verb: str, *arguments: str) -> str:
        """Run a command on the lab; its output. Exits with what it said when it fails."""
        argv = [sys.executable, "-m", "stacklab", verb, "--lab", LAB, *arguments]
        done = subprocess.run(argv, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{shlex.join(argv)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        return done.stdout


@contextmanager
def place(packages: Path | None = None) -> Iterator[Place]:
    """A new place with a copy (links if possible) of downloaded packages; removed with its lab at the end."""
    folder = Path(tempfile.mkdtemp(prefix="stacklab-bench-", dir="/var/tmp"))
    here = Place(folder)
    try:
        (folder / "cache").mkdir()
        if packages is not None and packages.is_dir():
            linked = subprocess.run(["cp", "-al", str(packages), str(here.packages)], check=False)
            if linked.returncode != 0:
                subprocess.run(["cp", "-a", str(packages), str(here.packages)], check=True)
        yield here
    finally:
        if here.lab.exists():
            here.stacklab("destroy", "--yes")
        shutil.rmtree(folder)


@dataclass
class Figures:
    """Seconds of each run, and the memory in MiB."""

    floor: list[dict[str, float]] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    cold_steps: list[dict[str, float]] = field(default_factory=list)
    healthy: list[float] = field(default_factory=list)
    token_issue: list[float] = field(default_factory=list)
    pss: float = 0.0

    def ratios(self) -> list[tuple[str, float, float]]:
        """Name, value and goal of what was measured."""
        found = []
        if self.floor and self.cold:
            floor = statistics.median(sum(run.values()) for run in self.floor)
            found.append(("cold up / floor", statistics.median(self.cold) / floor, 1.5))
        if self.healthy and self.token_issue:
            ratio = statistics.median(self.healthy) / statistics.median(self.token_issue)
            found.append(("healthy up / openstack token issue", ratio, 3.0))
        if self.pss:
            found.append(("memory, GiB of PSS", self.pss / 1024, 2.5))
        return found


def write_floor_inputs(folder: Path, prime: Place) -> None:
    """Put what floor.sh works from into `folder`, from a lab that is up on layer 1."""
    folder.mkdir()
    catalog = Catalog.load()
    graph = catalog.graph("openstack")
    services = [catalog.service(service.name) for service in graph.services_of(1)]
    packages = {name for service in services for part in service.parts.values() for name in part.packages}
    (folder / "packages.txt").write_text("".join(f"{name}\n" for name in sorted(packages)))
    script = data_dir() / "templates" / "images" / "install-packages"
    shutil.copy(script, folder / "install-packages")
    rendered = prime.lab / "rendered" / "layer-1"
    (tree,) = (rendered / "trees").glob("*.tar.gz.b64")
    (folder / "tree.tar.gz").write_bytes(base64.b64decode(tree.read_text()))
    (steps,) = (rendered / "files").glob("*/var/lib/stacklab/steps.json")
    (folder / "node.sh").write_text(node_script(json.loads(steps.read_text())))
    (node,) = yaml.safe_load((prime.lab / "lab.yaml").read_text())["nodes"]
    (folder / "address").write_text(node["address"])


def write_mmdebstrap(folder: Path, packages: Path) -> None:
    """Write the command line that makes the base system, with the packages at hand in `packages`."""
    release = Catalog.load().release("epoxy")
    mirror = host_mirror()
    archives = packages / "base"
    archives.mkdir(parents=True, exist_ok=True)
    words = [
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        f"--include={','.join(PACKAGES)}",
        *([f"--keyring={mirror.keyring}"] if mirror.keyring else []),
        *(f"--aptopt={option}" for option in mirror.apt_options),
        *(f"--dpkgopt={option}" for option in DPKG_OPTIONS),
        "--skip=essential/unlink",
        '--setup-hook=mkdir -p "$1/var/cache/apt/archives"',
        f"--setup-hook=sync-in {archives} /var/cache/apt/archives",
        '--customize-hook=rm -f "$1"/var/cache/apt/archives/*.deb',
        release.suite,
        "TREE",
        *mirror.sources(release.pockets, release.components),
    ]
    (folder / "mmdebstrap").write_text("".join(f"{word}\n" for word in words))


def node_script(steps: Sequence[dict[str, Any]]) -> str:
    """The floor's work on the node as a shell script: each step as soon as those before it are done."""
    kept = [step for step in steps if not BEYOND.match(step["id"])]
    names = {step["id"]: f"step-{number}" for number, step in enumerate(kept)}
    lines = [
        "#!/bin/bash",
        "set -eu",
        "trap '(($? == 0)) || journalctl --no-pager --boot --priority=warning --lines=40' EXIT",
        "tar -xzf /floor/tree.tar.gz -C / --no-overwrite-dir",
        "systemctl daemon-reload",
        "mkdir /floor/done",
    ]
    for step in kept:
        waits = [f"/floor/done/{names[name]}" for name in step.get("after", []) if name in names]
        lines += [f"( # {step['id']}", "set -e"]
        lines += [f"until [ -e {file} ]; do sleep 0.05; done" for file in waits]
        lines += [*_commands(step), f"touch /floor/done/{names[step['id']]}", ") & all+=($!)"]
    return "\n".join([*lines, 'for each in "${all[@]}"; do wait "$each"; done', ""])


def _commands(step: dict[str, Any]) -> list[str]:
    match step["kind"]:
        case "units":
            units = shlex.join(step["units"])
            return [f"systemctl --quiet enable {units} 2>/dev/null", f"systemctl restart {units}"]
        case "ports":
            ports = (f"/dev/tcp/{address}/{port}" for address, port in step["ports"])
            return [f"until (: <{port}) 2>/dev/null; do sleep 0.1; done" for port in ports]
        case _:
            run = step["run"]
            words = run if isinstance(run, list) else ["sh", "-c", run]
            user = step.get("as", "root")
            command = shlex.join(words if user == "root" else ["runuser", "-u", user, "--", *words])
            return [f"printf %s {shlex.quote(step.get('stdin', ''))} | {command}"]


def run_floor(inputs: Path, packages: Path) -> dict[str, float]:
    """Run the floor from nothing; the seconds of its stages."""
    with place(packages) as here:
        own = here.folder / "inputs"
        shutil.copytree(inputs, own)
        write_mmdebstrap(own, here.packages)
        (own / "packages").symlink_to(here.packages)
        argv = ["bash", str(HERE / "floor.sh"), str(own), str(here.folder / "floor")]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"floor.sh failed\n{done.stdout}{done.stderr}")
        return {name: float(seconds) for name, seconds in map(str.split, done.stdout.splitlines())}


def run_cold(packages: Path) -> tuple[float, dict[str, float]]:
    """Build layer 1 from nothing but downloaded packages; seconds of all, and of the steps of `up`."""
    with place(packages) as here:
        begin = time.monotonic()
        here.stacklab("up", "--layer", "1")
        seconds = time.monotonic() - begin
        lines = here.stacklab("events", "--output", "json", "--type", "step.passed").splitlines()
        passed = [json.loads(line)["data"] for line in lines]
    return seconds, {step["name"]: step["seconds"] for step in passed if "/" not in step["name"]}


def pss_of_lab() -> float:
    """The sum of the PSS of every process in the lab's control groups, in MiB."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"/stacklab/{LAB}" not in (folder / "cgroup").read_text():
                continue
            lines = (folder / "smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended, or has no memory of its own
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo").read_text()
    models = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    system = platform.freedesktop_os_release()
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": system.get("PRETTY_NAME", ""),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "stacklab": __version__,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def measure(rounds: int) -> Figures:
    """Everything, in turn."""
    figures = Figures()
    with place(DEFAULT_CACHE / "packages") as prime:
        say("preparing: a lab, for its packages and configuration")
        prime.stacklab("up", "--layer", "1")
        inputs = prime.folder / "floor-inputs"
        write_floor_inputs(inputs, prime)
        figures.pss = pss_of_lab()
        for _ in range(max(5, rounds)):
            begin = time.monotonic()
            prime.stacklab("up")
            figures.healthy.append(time.monotonic() - begin)
            argv = ("python3", "-c", TOKEN_ISSUE)
            figures.token_issue.append(float(prime.stacklab("exec", "--", *argv)))
        prime.stacklab("destroy", "--yes")
        for number in range(1, rounds + 1):
            say(f"round {number} of {rounds}: floor")
            figures.floor.append(run_floor(inputs, prime.packages))
            say(f"round {number} of {rounds}: cold up")
            seconds, steps = run_cold(prime.packages)
            figures.cold.append(seconds)
            figures.cold_steps.append(steps)
    return figures


def say(words: str) -> None:
    print(f"{datetime.now():%H:%M:%S} {words}", file=sys.stderr, flush=True)


def report(figures: Figures) -> str:
    """The table."""
    lines = [f"{'':36} {'measured':>9} {'goal':>6}"]
    lines += [f"{name:36} {value:9.2f} {goal:6.1f}" for name, value, goal in figures.ratios()]
    lines += ["", "seconds"]
    for run in figures.floor:
        stages = "  ".join(f"{name} {seconds:.1f}" for name, seconds in run.items())
        lines.append(f"  floor     {sum(run.values()):7.1f}   {stages}")
    for seconds, steps in zip(figures.cold, figures.cold_steps, strict=True):
        parts = "  ".join(f"{name} {each:.1f}" for name, each in steps.items())
        lines.append(f"  cold up   {seconds:7.1f}   {parts}")
    lines.append("  healthy up          " + "  ".join(f"{seconds:.2f}" for seconds in figures.healthy))
    lines.append("  token issue         " + "  ".join(f"{seconds:.2f}" for seconds in figures.token_issue))
    return "\n".join(lines)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--rounds", type=int, default=2, help="floor and cold build, in turn, this often (2)")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "layer1.json", metavar="FILE")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("building labs needs root")
    figures = measure(arguments.rounds)
    document = {"machine": machine(), "ratios": figures.ratios(), **vars(figures)}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(document, indent=1))
    print(report(figures))
    sys.exit(any(value > goal for _, value, goal in figures.ratios()))


if __name__ == "__main__":
    main()
