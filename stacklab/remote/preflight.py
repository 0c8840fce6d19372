"""The preflight of hosts: all of them are asked at once, and all that is wrong with any is told together.

Nothing is changed on a host before this has passed.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from stacklab.blueprint import Blueprint
from stacklab.errors import HostUnfit
from stacklab.host.checks import Finding, State
from stacklab.provide.provider import Node
from stacklab.remote.checks import Wanted, judge, lines_of, wanted
from stacklab.remote.connection import HostKey, KnownHosts, UnknownKey, Unreached, connected, run
from stacklab.remote.facts import Facts, probe, read

AT_ONCE = 32
PROBE_SECONDS = 90.0
# The probe comes as standard input; whoever may become root reads it as root.
SHELL = (
    'if [ "$(id -u)" != 0 ] && sudo -n true < /dev/null 2> /dev/null; then exec sudo -n sh -s; fi; exec sh -s'
)

Accept = Callable[[Sequence[HostKey]], bool]
"""Asks the user whether host keys that nobody knows are those of the hosts."""


@dataclass
class Answer:
    """What came of asking one host: its facts, or the key that it has shown and nobody knows, or neither."""

    node: Node
    facts: Facts | None = None
    unknown: HostKey | None = None
    findings: list[Finding] = field(default_factory=list)


def preflight(
    blueprint: Blueprint, known: KnownHosts, lab: str, accept: Accept, *, online: bool = True
) -> dict[str, Answer]:
    """Ask all hosts of a lab at once, and judge them; what they answered, by node.

    lab: the name under which hosts know the lab, "" for one that has not been made. accept: is asked once,
    with all keys that are not known. Raises HostUnfit with all that is wrong with all hosts.
    """
    wants = {node: wanted(blueprint, node, lab, online=online) for node in blueprint.nodes}
    answers = _ask(wants, known)
    shown = [answer.unknown for answer in answers.values() if answer.unknown]
    if shown and accept(shown):
        known.accept(shown)
        again = {answer.node: wants[answer.node] for answer in answers.values() if answer.unknown}
        answers |= _ask(again, known)
    refused = {
        answer.node: [finding for finding in answer.findings if finding.state is State.FAILED]
        for answer in answers.values()
    }
    refused = {node: findings for node, findings in refused.items() if findings}
    if refused:
        raise _unfit(refused, any(answer.unknown for answer in answers.values()))
    known.save(blueprint.nodes)
    return answers


def _ask(wants: Mapping[Node, Wanted], known: KnownHosts) -> dict[str, Answer]:
    with ThreadPoolExecutor(min(AT_ONCE, len(wants))) as pool:
        answers = pool.map(lambda want: _ask_one(want, known), wants.values())
        return {answer.node.name: answer for answer in answers}


def _ask_one(lab: Wanted, known: KnownHosts) -> Answer:
    node = lab.node
    program = probe(lab.release.suite, lab.packages, lab.units, online=lab.online)
    try:
        with connected(node, known) as client:
            before = time.time()
            _, text, errors = run(client, SHELL, program, PROBE_SECONDS)
            facts = read(text, before, time.time())
    except UnknownKey as error:
        key = error.key
        what = f"its host key is not known: {key.algorithm} {key.fingerprint}"
        advice = "compare it with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on its console"
        return Answer(node, unknown=key, findings=[Finding("host key", State.FAILED, what, advice)])
    except Unreached as error:
        return Answer(node, findings=[Finding("ssh", State.FAILED, str(error), error.advice)])
    if not facts.whole:
        last = "; ".join((text + errors).strip().splitlines()[-2:]) or "nothing"
        what = f"its shell does not do what it is told; it said: {last}"
        return Answer(
            node, facts, findings=[Finding("ssh", State.FAILED, what, "see the user's login shell")]
        )
    return Answer(node, facts, findings=judge(facts, lab))


def _unfit(refused: Mapping[Node, Sequence[Finding]], unknown: bool) -> HostUnfit:
    lines = [
        line
        for node, findings in refused.items()
        for line in (f"{node.name} ({node.address}):", *lines_of(findings))
    ]
    count = sum(map(len, refused.values()))
    problems = "one problem" if count == 1 else f"{count} problems"
    hosts = f"the host '{next(iter(refused)).name}'" if len(refused) == 1 else f"{len(refused)} hosts"
    return HostUnfit(
        f"{problems} with {hosts}; nothing was changed on any",
        detail="\n".join(lines),
        hint="--accept-host-keys, when the keys above are right"
        if unknown
        else "mend it, and the same again",
    )
