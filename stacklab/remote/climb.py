"""The climb of a lab of hosts: no image is made, nothing is frozen, nothing is changed before the preflight.

The rest of the path is that of every other lab (stacklab/climb.py).
"""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from stacklab.blueprint import Blueprint
from stacklab.climb import Climb, Summary
from stacklab.errors import UsageError
from stacklab.host.checks import host_facts
from stacklab.journal import Listener
from stacklab.lab.lab import Lab
from stacklab.provide.host import NOT_UNDONE, HostProvider
from stacklab.provide.provider import NodeState
from stacklab.remote import kvm
from stacklab.remote.connection import HostKey, KnownHosts
from stacklab.remote.preflight import Accept, Answer, preflight
from stacklab.render import Rendered

LASTING = "stacklab.lab.lasting"


def refuse(keys: Sequence[HostKey]) -> bool:
    """The answer where there is nobody to ask about host keys."""
    return False


def known_hosts(lab: Lab) -> KnownHosts:
    """The host keys of a lab of hosts."""
    return KnownHosts(lab.folder / "ssh" / "known_hosts")


def up_on_hosts(
    lab: Lab, blueprint: Blueprint, listener: Listener, accept: Accept | None, *, online: bool
) -> Summary:
    """Bring a lab of hosts up, which is locked; raises as `stacklab.climb.up`."""
    began = time.monotonic()
    if blueprint.versions is not None:
        raise UsageError("hosts have the versions of their own mirrors: --locked is for nodes that are made")
    is_new = not lab.exists
    mark = "" if is_new else lab.mark
    online = online and blueprint.settings.layer < blueprint.target
    answers = preflight(blueprint, known_hosts(lab), mark, accept or refuse, online=online)
    settings = blueprint.settings.model_copy(update={"hosts_openvswitch": _has_openvswitch(answers)})
    lab.save(settings)
    lab.journal.subscribe(listener)
    if is_new:
        lab.journal.record(LASTING, lab.name, lines=list(lasting(answers)))
    climb = HostClimb(lab, blueprint, host_facts(lab.home, settings), online=online)
    climb.answers = answers
    return climb.to_the_top(began)


def lasting(answers: Mapping[str, Answer]) -> Sequence[str]:
    """What stays on hosts when the lab is destroyed, in words."""
    warnings = [f"{name}: {finding.what}" for name, each in answers.items() for finding in each.findings]
    return (*NOT_UNDONE, *warnings)


def _has_openvswitch(answers: Mapping[str, Answer]) -> bool:
    """Whether all hosts that carry traffic have Open vSwitch's datapath in their kernels."""
    there = [
        answer.facts is not None and answer.facts.openvswitch
        for answer in answers.values()
        if {"compute", "network"} & set(answer.node.roles)
    ]
    return bool(there) and all(there)


class HostClimb(Climb):
    """One run of `up` on one lab of hosts. answers: what the preflight has found."""

    answers: Mapping[str, Answer]

    def run(self) -> bool:
        """Complete a step down that was cut off; then do what is left to do."""
        from stacklab.remote.down import finish_down

        finish_down(self.lab)
        return super().run()

    def _thaw(self) -> bool:
        return False

    def _make(self) -> datetime | None:
        """Have the hosts part of the lab, their services on, and the packages of the first layer there."""
        new = [node for node in self.blueprint.nodes if self.lab.provider.state(node) is NodeState.ABSENT]
        for node in new:
            self.lab.provider.create(node, [], {})
            self.lab.journal.record("stacklab.node.created", node.name)
        moment = datetime.now(UTC)
        started = self.lab.start()
        self._add_missing_packages(1)
        self._prove_kvm_on_hosts()
        return moment if started else None

    def retire(self, services: Sequence[str]) -> None:
        """Have what services that go would leave running ended on all hosts, and their units switched off."""
        provider = self.lab.provider
        assert isinstance(provider, HostProvider)
        for node in self.blueprint.nodes:
            with self.lab.journal.step("stop services", node.name, services=services):
                provider.ledger(node, "retire", *services)

    def _stop_gone_units(self, rendered: Rendered) -> None:
        """Retire the services that went by `--without`, as long as the hosts know what to run for that."""
        staying = {service.name for service in self.blueprint.up_to(rendered.layer)}
        gone = [name for name in reversed(self.lab.settings.services) if name not in staying]
        if gone and not self.lab.settings.stepping_down:
            self.retire(gone)
        super()._stop_gone_units(rendered)

    def _add_missing_packages(self, layer: int) -> None:
        self.lab.at_once(lambda node: self._install_on(node, layer), self.blueprint.nodes)

    def _prove_kvm_on_hosts(self) -> None:
        """Find out, once, whether instances can run on KVM on all hosts that run any."""
        settings = self.lab.settings
        nodes = [node for node in self.blueprint.nodes if "compute" in node.roles]
        if settings.hosts_kvm is None and nodes:
            kernel = self._guest().kernel
            devices = [answer.facts is not None and answer.facts.kvm for answer in self.answers.values()]
            works = all(devices) and all(
                self.lab.at_once(lambda node: kvm.works(self.lab, node, kernel), nodes)
            )
            settings = settings.model_copy(update={"hosts_kvm": works})
            self.lab.save(settings)
        self.host = host_facts(self.lab.home, settings)

    def _freeze(self, layer: int, *, late: bool) -> None:
        """Nothing: hosts are not frozen."""

    def _planned(self) -> list[str]:
        layers = range(1, self.blueprint.target + 1)
        return [f"layer {layer}{word}" for layer in layers for word in ("", " checks")]
