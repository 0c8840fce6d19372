"""Virtual machines against containers, and a thaw with memory against libvirt alone.

    python benchmarks/vm.py --rounds 1        as root, after ./bootstrap; emulated, more than half an hour

docs/performance.md says what is compared and why. Downloaded packages are taken from the machine's cache,
images are built in one of its own; labs are made in a folder of their own, and removed. Prints a table and
writes benchmarks/results/vm.json.
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
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stacklab.home import Home
from stacklab.lab.access import wait_for_ssh
from stacklab.lab.lab import Lab

HERE = Path(__file__).parent
GOALS = {"vm / lxc, cold": 6.0, "thaw with memory / virsh restore": 1.5}
NODE = "controller"
KEPT = "kept"


def stacklab(*arguments: str) -> float:
    """Run a command; the seconds that it took. Exits with what it said when it fails."""
    begin = time.monotonic()
    with start(*arguments) as process:
        said = process.communicate()[0]
    if process.returncode != 0:
        sys.exit(f"stacklab {' '.join(arguments)}\n{said[-6000:]}")
    return time.monotonic() - begin


def start(*arguments: str) -> "subprocess.Popen[str]":
    """Start a command."""
    argv = [sys.executable, "-m", "stacklab", *arguments]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@contextmanager
def folders() -> Iterator[None]:
    """State and cache of our own, with the machine's packages as links; labs are destroyed at the end."""
    downloads = Home.from_environment().cache / "packages"
    folder = Path(tempfile.mkdtemp(prefix="stacklab-bench-", dir="/var/tmp"))
    (folder / "cache").mkdir()
    if downloads.is_dir():
        subprocess.run(["cp", "-al", str(downloads), str(folder / "cache")], check=True)
    os.environ |= {"STACKLAB_STATE": str(folder / "state"), "STACKLAB_CACHE": str(folder / "cache")}
    try:
        yield
    finally:
        for lab in Lab.all(Home.from_environment()):
            stacklab("destroy", "--lab", lab.name, "--yes")
        shutil.rmtree(folder)


def build_cold(kind: str) -> float:
    """Seconds of a cold `up --layer 1` with nodes of a kind; the lab stays."""
    shutil.rmtree(Home.from_environment().cache / "images", ignore_errors=True)
    return stacklab("up", "--layer", "1", "--node-kind", kind, "--lab", kind)


def token_after(lab: Lab, process: "subprocess.Popen[str]") -> float:
    """Seconds until Keystone issues a token, while a command works."""
    begin = time.monotonic()
    while not issues_token(lab):
        if process.poll() not in (None, 0):
            sys.exit(process.communicate()[0][-4000:])
        time.sleep(0.05)
    return time.monotonic() - begin


def issues_token(lab: Lab) -> bool:
    """Whether Keystone issues a token just now."""
    settings = lab.environment()
    user = {"name": "admin", "domain": {"id": "default"}, "password": settings["OS_PASSWORD"]}
    scope = {"project": {"name": "admin", "domain": {"id": "default"}}}
    body = {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}, "scope": scope}}
    headers = {"Content-Type": "application/json"}
    url = f"{settings['OS_AUTH_URL']}/auth/tokens"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with suppress(Exception), lab.namespace.network():
        return bool(urllib.request.urlopen(request, timeout=5).status == 201)
    return False


def thaw_with_memory(lab: Lab) -> float:
    """Seconds from `checkpoint restore` of a lab that is off until a token is issued."""
    stacklab("stop", "--lab", lab.name)
    with start("checkpoint", "restore", KEPT, "--lab", lab.name, "--yes") as process:
        seconds = token_after(lab, process)
        process.communicate()
    return seconds


def restore_bare(lab: Lab) -> float:
    """Seconds of `virsh restore` of the same domain until SSH answers, with libvirtd running."""
    connect = f"qemu+unix:///system?socket={lab.folder / 'run/libvirt/libvirt-sock'}"
    memory = lab.folder / "bare-memory"
    virsh = ["virsh", "--quiet", "--connect", connect]
    subprocess.run([*virsh, "save", NODE, str(memory)], check=True)
    begin = time.monotonic()
    subprocess.run([*virsh, "restore", str(memory)], check=True)
    wait_for_ssh(lab, lab.node(NODE))
    seconds = time.monotonic() - begin
    memory.unlink()
    return seconds


def median(measure: Callable[[], float], rounds: int) -> float:
    """The median of some measurements."""
    return statistics.median(measure() for _ in range(rounds))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    rounds = parser.parse_args().rounds
    with folders():
        seconds = {"lxc, cold": build_cold("lxc")}
        stacklab("destroy", "--lab", "lxc", "--yes")
        seconds["vm, cold"] = build_cold("vm")
        lab = Lab.open(Home.from_environment(), "vm")
        seconds["checkpoint save --memory"] = stacklab(
            "checkpoint", "save", KEPT, "--memory", "--lab", lab.name
        )
        seconds["thaw with memory"] = median(lambda: thaw_with_memory(lab), max(rounds, 3))
        seconds["virsh restore"] = median(lambda: restore_bare(lab), max(rounds, 3))
    ratios = {
        "vm / lxc, cold": seconds["vm, cold"] / seconds["lxc, cold"],
        "thaw with memory / virsh restore": seconds["thaw with memory"] / seconds["virsh restore"],
    }
    for name, value in seconds.items():
        print(f"{name:<36} {value:8.1f} s")
    for name, value in ratios.items():
        print(f"{name:<36} {value:8.2f}   goal {GOALS[name]:.2f}")
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    about = {"machine": {"cpus": os.cpu_count(), "kernel": os.uname().release}}
    (results / "vm.json").write_text(json.dumps({**about, "seconds": seconds, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
