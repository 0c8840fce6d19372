"""Images against a bare boot: thaw, step down, clone, planning.

    python benchmarks/images.py --rounds 3        as root, after ./bootstrap; some five minutes, and a minute
    a round

docs/performance.md says what is compared and why. Uses the machine's cache of images, builds what is not in
it; labs are made in a folder of their own, and removed. Prints a table and writes
benchmarks/results/images.json.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from stacklab.blueprint import UpRequest, resolve
from stacklab.check.agents import silent_since
from stacklab.check.cloud import Cloud
from stacklab.check.result import Unmet
from stacklab.errors import StacklabError
from stacklab.home import Home
from stacklab.lab.lab import Lab

HERE = Path(__file__).parent
BOTH_ACTIVE = (
    'until [ "$(systemctl is-active mariadb rabbitmq-server | sort -u)" = active ]; do sleep 0.05; done'
)
GOALS = {
    "thaw, until it serves / bare boot": 3.0,
    "down / thaw": 1.2,
    "clone / thaw": 1.2,
    "clone, MiB of its own": 64.0,
    "plan, seconds": 1.0,
}


def stacklab(*arguments: str) -> float:
    """Run a command; the seconds that it took. Exits with what it said when it fails."""
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "stacklab", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"stacklab {' '.join(arguments)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return time.monotonic() - begin


def thaw(name: str) -> tuple[float, float]:
    """Make a lab from the image of layer 1.

    Returns the seconds until its cloud serves: a token is issued, servers are listed, the compute service has
    reported since; and those until `up` has ended, when every API and agent is there.
    """
    began, moment = time.monotonic(), datetime.now(UTC)
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(stacklab, "up", "--layer", "1", "--lab", name)
        cloud = None
        while not whole.done() and not (cloud and serves(cloud, moment)):
            cloud = cloud or made(name)
            time.sleep(0.2)
        return time.monotonic() - began, whole.result()


def made(name: str) -> Cloud | None:
    """The cloud of a lab; None before it has been put on its image."""
    try:
        lab = Lab.open(Home.from_environment(), name)
        if lab.settings.thawing or not lab.settings.layer:
            return None
        return Cloud.of(lab, resolve(lab, UpRequest(lab=name)), 1)
    except (StacklabError, OSError):
        return None


def serves(cloud: Cloud, moment: datetime) -> bool:
    """Whether a token is issued, servers are listed and the compute service has reported since `moment`."""
    try:
        with cloud.lab.namespace.network():
            cloud.api.get("compute", "/servers")
            silent = silent_since(cloud, moment)
    except (StacklabError, Unmet, OSError):
        return False
    return not any("nova-compute" in words for words in silent)


def boot_bare() -> float:
    """Seconds from the start of a node that has only MariaDB and RabbitMQ until both are active."""
    lab = Lab.open(Home.from_environment(), "bare")
    begin = time.monotonic()
    lab.start()
    lab.run_on("controller", [BOTH_ACTIVE])
    seconds = time.monotonic() - begin
    lab.stop()
    return seconds


def own_size(name: str) -> float:
    """What the folder of a lab takes on the disk, in MiB."""
    folder = Home.from_environment().labs / name
    done = subprocess.run(
        ["du", "-s", "--block-size=1K", str(folder)], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[0]) / 1024


@contextmanager
def state() -> Iterator[None]:
    """A state folder of our own; its labs are destroyed at the end."""
    folder = tempfile.mkdtemp(prefix="stacklab-bench-", dir="/var/tmp")
    os.environ["STACKLAB_STATE"] = folder
    try:
        yield
    finally:
        for lab in Lab.all(Home.from_environment()):
            stacklab("destroy", "--lab", lab.name, "--yes")
        shutil.rmtree(folder, ignore_errors=True)


def measure(rounds: int) -> dict[str, list[float]]:
    """The figures of each round, by name; seconds, but for the size."""
    figures: dict[str, list[float]] = {
        name: [] for name in ("bare boot", "thaw, until it serves", "thaw", "down", "clone", "plan", "size")
    }
    stacklab("up", "--lab", "bare", "--profile", "bare", "--path", str(HERE / "profiles"))
    stacklab("stop", "--lab", "bare")
    stacklab("up", "--layer", "1", "--lab", "first")
    stacklab("destroy", "--lab", "first", "--yes")
    for _ in range(rounds):
        figures["bare boot"].append(boot_bare())
        for figure, seconds in zip(("thaw, until it serves", "thaw"), thaw("thawed"), strict=True):
            figures[figure].append(seconds)
        figures["plan"].append(stacklab("plan", "--layer", "1", "--lab", "other", "--output", "json"))
        figures["down"].append(stacklab("down", "--to", "1", "--lab", "thawed", "--yes"))
        stacklab("stop", "--lab", "thawed")
        figures["clone"].append(stacklab("clone", "thawed", "copy"))
        figures["size"].append(own_size("copy"))
        for name in ("copy", "thawed"):
            stacklab("destroy", "--lab", name, "--yes")
    return figures


def ratios(figures: dict[str, list[float]]) -> dict[str, float]:
    """Name and value of what has a goal, from the medians."""
    middle = {name: statistics.median(values) for name, values in figures.items()}
    return {
        "thaw, until it serves / bare boot": middle["thaw, until it serves"] / middle["bare boot"],
        "down / thaw": middle["down"] / middle["thaw"],
        "clone / thaw": middle["clone"] / middle["thaw"],
        "clone, MiB of its own": middle["size"],
        "plan, seconds": middle["plan"],
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with state():
        figures = measure(rounds)
    found = ratios(figures)
    for name, values in figures.items():
        print(f"{name:34} {'  '.join(f'{value:7.2f}' for value in values)}")
    for name, value in found.items():
        print(f"{name:34} {value:7.2f}   goal: at most {GOALS[name]}")
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "images.json").write_text(json.dumps({"figures": figures, "ratios": found}, indent=1))


if __name__ == "__main__":
    main()
