"""Layer 2: the climb against its floor, a thaw against a bare boot, and what each service takes of memory.

    python benchmarks/layer2.py --rounds 3        as root, after ./bootstrap; some ten minutes a round

docs/performance.md says what is compared and why. Uses the machine's cache of images, builds what is not in
it; labs are made in a folder of their own, and removed. Prints a table and writes
benchmarks/results/layer2.json.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from images import boot_bare, stacklab, state
from layer1 import machine, node_script

from stacklab import wheels
from stacklab.home import Home
from stacklab.images.packages import Downloads, Installation
from stacklab.lab.lab import Lab
from stacklab.model.catalog import Catalog

HERE = Path(__file__).parent
GRAPH = Catalog.load().graph("openstack")
PLANNED = GRAPH.layers[1].planned
UP = ("up", "--layer", "2", *(["--without", ",".join(PLANNED)] if PLANNED else []))
GOALS = {"climb / floor": 1.5, "thaw / bare boot": 3.5, "memory, GiB of PSS": 5.0}
UNIT = re.compile(r"/([^/]+)\.service")


def steps_done(lab: Lab, after: int) -> set[str]:
    """The steps on the nodes that passed since the journal's event `after`, and so were not skipped."""
    passed = (event for event in lab.journal.read(after=after) if event.type == "stacklab.step.passed")
    return {event.data["name"] for event in passed if "/" in event.data["name"]} | {"identity"}


def write_inputs(lab: Lab, folder: Path, after: int) -> None:
    """Put what the floor works from into `folder`: the packages, the files and steps of a climb just made."""
    folder.mkdir()
    rendered = lab.folder / "rendered" / "layer-2"
    (tree,) = (rendered / "trees").glob("*.tar.gz.b64")
    (folder / "tree.tar.gz.b64").write_text(tree.read_text())
    (steps,) = (rendered / "files").glob("*/var/lib/stacklab/steps.json")
    done = steps_done(lab, after)
    ports = (step for step in json.loads(steps.read_text()) if step["kind"] == "ports")
    needed = done | {step["id"] for step in ports if step["id"].removesuffix(".ready") in done}
    kept = [step for step in json.loads(steps.read_text()) if step["id"] in needed]
    (folder / "node.sh").write_text(node_script(kept))
    services = (service for service in GRAPH.services_of(2))
    packages = {name for service in services for part in service.parts.values() for name in part.packages}
    (folder / "packages").write_text("\n".join(sorted(packages)))


def run_floor(lab: Lab, inputs: Path) -> dict[str, float]:
    """Do a climb's work on a lab that stands on layer 1, by a shell script; the seconds of its stages."""
    home = Home.from_environment()
    node = lab.controller
    begin = time.monotonic()
    names = (inputs / "packages").read_text().split()
    downloads = Downloads(home.cache / "packages")
    lab.provider.install(node, Installation(names, downloads, inputs / "install.log", None))
    for wheel in {
        wheel for service in GRAPH.services_of(2) for part in service.parts.values() for wheel in part.wheels
    }:
        wheels.put_on(lab, node, wheel, downloads)
    installed = time.monotonic()
    for name in ("tree.tar.gz.b64", "node.sh"):
        put = lab.ssh_command(node.name, [f"mkdir -p /floor && cat > /floor/{name}"])
        subprocess.run(put, input=(inputs / name).read_bytes(), check=True)
    unpack = "base64 -d /floor/tree.tar.gz.b64 > /floor/tree.tar.gz; systemd-tmpfiles --create"
    done = lab.run_on(node.name, [f"{unpack}; timeout 900 bash /floor/node.sh"])
    if done.returncode != 0:
        sys.exit(f"the floor failed\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return {"packages": installed - begin, "steps": time.monotonic() - installed}


def memory(lab: str) -> dict[str, float]:
    """The PSS of the services of a lab of containers, in MiB; what belongs to none counts for `node`."""
    services = {
        unit: each.name
        for each in GRAPH.services.values()
        for part in each.parts.values()
        for unit in part.units
    }
    found: dict[str, float] = defaultdict(float)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            group = (folder / "cgroup").read_text()
            if f"/stacklab/{lab}" not in group:
                continue
            lines = (folder / "smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended, or has no memory of its own
            continue
        units = UNIT.findall(group)
        owner = services.get(units[-1], "node") if units else "node"
        found[owner] += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    return dict(found)


def measure(rounds: int, folder: Path) -> dict[str, Any]:
    """Everything, in turn."""
    figures: dict[str, Any] = {name: [] for name in ("bare boot", "thaw", "climb", "floor")}
    stacklab("up", "--lab", "bare", "--profile", "bare", "--path", str(HERE / "profiles"))
    stacklab("stop", "--lab", "bare")
    stacklab("up", "--layer", "1", "--lab", "first")
    stacklab(*UP, "--lab", "first")
    time.sleep(30)  # what starts has settled
    figures["memory"] = memory("first")
    stacklab("destroy", "--lab", "first", "--yes")
    for number in range(rounds):
        stacklab("up", "--layer", "1", "--lab", "climbed")
        lab = Lab.open(Home.from_environment(), "climbed")
        before = lab.journal.newest()
        figures["climb"].append(stacklab(*UP, "--lab", "climbed"))
        inputs = folder / f"inputs-{number}"
        write_inputs(lab, inputs, before)
        lab.journal.close()
        stacklab("destroy", "--lab", "climbed", "--yes")
        stacklab("up", "--layer", "1", "--lab", "floor")
        stages = run_floor(Lab.open(Home.from_environment(), "floor"), inputs)
        figures.setdefault("floor stages", []).append(stages)
        figures["floor"].append(sum(stages.values()))
        stacklab("destroy", "--lab", "floor", "--yes")
        figures["bare boot"].append(boot_bare())
        figures["thaw"].append(stacklab(*UP, "--lab", "thawed"))
        stacklab("destroy", "--lab", "thawed", "--yes")
    return figures


def ratios(figures: dict[str, Any]) -> dict[str, float]:
    """Name and value of what has a goal, from the medians."""
    middle = {name: statistics.median(figures[name]) for name in ("climb", "floor", "thaw", "bare boot")}
    return {
        "climb / floor": middle["climb"] / middle["floor"],
        "thaw / bare boot": middle["thaw"] / middle["bare boot"],
        "memory, GiB of PSS": sum(figures["memory"].values()) / 1024,
    }


def report(figures: dict[str, Any]) -> str:
    """The tables."""
    found = ratios(figures)
    lines = [f"{name:24} {value:7.2f}   goal: at most {GOALS[name]}" for name, value in found.items()]
    for name in ("climb", "floor", "bare boot", "thaw"):
        lines.append(f"{name:24} " + "  ".join(f"{value:7.2f}" for value in figures[name]))
    lines += ["", f"{'memory, MiB of PSS':24} measured declared"]
    for name, size in sorted(figures["memory"].items(), key=lambda item: -item[1]):
        declared = GRAPH.services[name].needs.memory if name in GRAPH.services else 0
        mark = "  more than it says" if declared and size > declared * 1.1 else ""
        lines.append(f"{name:24} {size:8.0f} {declared or '':>8}{mark}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--rounds", type=int, default=2)
    rounds = parser.parse_args().rounds
    with state():
        figures = measure(rounds, Home.from_environment().state)
    print(report(figures))
    (HERE / "results").mkdir(exist_ok=True)
    document = {"machine": machine(), "ratios": ratios(figures), **figures}
    (HERE / "results" / "layer2.json").write_text(json.dumps(document, indent=1))
    sys.exit(any(value > GOALS[name] for name, value in ratios(figures).items()))


if __name__ == "__main__":
    main()
