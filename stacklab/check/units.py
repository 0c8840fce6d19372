"""The systemd units of services on their nodes, with one SSH call for each node."""

import subprocess
from collections.abc import Iterable, Mapping, Sequence

from stacklab.blueprint import parts_on
from stacklab.check.result import Unmet
from stacklab.lab.lab import Lab
from stacklab.model.service import Service
from stacklab.provide.provider import Node

_PROPERTIES = ("ActiveState", "SubState", "Result", "LoadState")


def units_on(services: Iterable[Service], node: Node) -> dict[str, tuple[str, ...]]:
    """The units that run on a node, by service; services without any are left out."""
    by_service = {
        service.name: tuple(
            dict.fromkeys(unit for part in parts_on(service, node).values() for unit in part.units)
        )
        for service in services
    }
    return {name: units for name, units in by_service.items() if units}


def unit_problems(lab: Lab, node: Node, units: Sequence[str], *, seconds: float) -> dict[str, str]:
    """What is wrong with those of `units` that are not active, by unit. Raises Unmet when the node cannot
    be asked.
    """
    if not units:
        return {}
    names = [unit if "." in unit else f"{unit}.service" for unit in units]
    done = on_node(
        lab, node, ["systemctl", "show", f"--property={','.join(_PROPERTIES)}", "--", *names], seconds=seconds
    )
    if done.returncode != 0:
        raise Unmet(f"node '{node.name}' cannot be asked for its units", detail=done.stderr.strip())
    states = parse(done.stdout)
    if len(states) != len(units):
        raise Unmet(
            f"node '{node.name}' tells of {len(states)} units instead of {len(units)}", detail=done.stdout
        )
    judged = {unit: problem(state) for unit, state in zip(units, states, strict=True)}
    return {unit: words for unit, words in judged.items() if words}


def on_node(
    lab: Lab, node: Node, argv: Sequence[str], *, seconds: float
) -> "subprocess.CompletedProcess[str]":
    """Run a command on a node; unlike `Lab.run_on`, raises Unmet when it takes too long: nodes under check
    may hang.
    """
    command = lab.ssh_command(node.name, argv)
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds * lab.patience,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unmet(f"node '{node.name}' does not answer SSH within {seconds * lab.patience:.0f} s") from None


def parse(text: str) -> list[dict[str, str]]:
    """The blocks of `systemctl show` for several units, in their order."""
    blocks = [block for block in text.split("\n\n") if block.strip()]
    return [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks]


def problem(state: Mapping[str, str]) -> str:
    """Why a unit in this state does not count as running; empty when it does."""
    if state.get("LoadState") == "not-found":
        return "there is no such unit"
    if state.get("ActiveState") == "active":
        return ""
    words = f"{state.get('ActiveState', 'unknown')} ({state.get('SubState', '')})"
    result = state.get("Result", "success")
    return words if result == "success" else f"{words}, {result}"
