"""The scenario `names`: a zone and its records are created through Designate, and BIND answers for them.

Where there is Neutron, a port and a floating IP get names of their own. All of it belongs to the
administrator's project, but for the zone of reverse names, which Neutron makes once and keeps.
"""

from collections.abc import Callable
from typing import Any

import dns.exception
import dns.message
import dns.query
import dns.rcode
import dns.reversename

from stacklab.check.cloud import Cloud
from stacklab.check.removal import TOP
from stacklab.check.result import Checking, Unmet
from stacklab.check.trial import PROVIDER, Trial, TrialStep, play
from stacklab.model.service import Service

ACTIVE_SECONDS = 60.0
ANSWER_SECONDS = 30.0
ADDRESS = "192.0.2.1"  # for documentation: RFC 5737


def check_names(cloud: Cloud, service: Service, name: str) -> Checking:
    """Play the scenario: each name is asked for at the name server itself."""
    trial = _Names(cloud)
    yield from play(trial, trial.steps(), service, name)


class _Names(Trial):
    @property
    def zone(self) -> str:
        """The zone that everything is named in."""
        return f"{self.name}.{TOP}"

    def steps(self) -> list[TrialStep]:
        """What is asked, in order."""
        steps: list[TrialStep] = [
            ("a zone is created", self.create_zone),
            ("a record resolves", self.create_record),
            ("a changed record resolves", self.change_record),
        ]
        if any(service.name == "neutron" for service in self.cloud.services):
            steps += [
                ("the name of a port resolves, and its address", self.name_port),
                ("the name of a floating IP resolves", self.name_floating_ip),
            ]
        return steps

    def create_zone(self) -> None:
        """A zone gets ACTIVE: it went from Designate's database to BIND."""
        self.clear()
        zone = self.api.dns.create_zone(name=self.zone, email=f"hostmaster@{self.name}.test", ttl=60)
        self._wait_active(lambda: self.api.dns.get_zone(zone.id), f"the zone {self.zone}")

    def create_record(self) -> None:
        """A record set resolves."""
        zone = self.api.dns.find_zone(self.zone, ignore_missing=False)
        record = self.api.dns.create_recordset(
            zone, name=f"www.{self.zone}", type="A", records=[ADDRESS], ttl=60
        )
        self._wait_active(lambda: self.api.dns.get_recordset(record.id, zone), f"the record {record.name}")
        self._resolve(f"www.{self.zone}", "A", [ADDRESS])

    def change_record(self) -> None:
        """So does another value of it."""
        zone = self.api.dns.find_zone(self.zone, ignore_missing=False)
        (record,) = self.api.dns.recordsets(zone, name=f"www.{self.zone}")
        self.api.dns.update_recordset(record, records=["192.0.2.2", "192.0.2.3"])
        self._resolve(f"www.{self.zone}", "A", ["192.0.2.2", "192.0.2.3"])

    def name_port(self) -> None:
        """Neutron publishes a port of a network that has a domain, in both directions."""
        network = self.api.network.create_network(
            name=self.name, dns_domain=self.zone, provider_network_type="geneve"
        )
        self.api.network.create_subnet(
            name=self.name,
            network_id=network.id,
            ip_version=4,
            cidr="198.51.100.0/24",
            dns_publish_fixed_ip=True,
        )
        port = self.api.network.create_port(name=self.name, network_id=network.id, dns_name="port")
        address = port.fixed_ips[0]["ip_address"]
        self._resolve(f"port.{self.zone}", "A", [address])
        self._resolve(str(dns.reversename.from_address(address)), "PTR", [f"port.{self.zone}"])

    def name_floating_ip(self) -> None:
        """Neutron publishes a floating IP with the name that it was given."""
        network = self.api.network.find_network(PROVIDER, ignore_missing=False)
        floating = self.api.network.create_ip(
            floating_network_id=network.id, dns_name="floating", dns_domain=self.zone, description=self.name
        )
        self._resolve(f"floating.{self.zone}", "A", [floating.floating_ip_address])

    def remove(self) -> None:
        """Remove what was made, and see that the name server does not know it any more."""
        super().remove()
        if (said := _answer(self.cloud, f"www.{self.zone}", "A")) != "REFUSED":
            raise Unmet(f"the zone is gone, but asked for www.{self.zone} the name server says {said}")

    def _wait_active(self, look: Callable[[], Any], what: str) -> None:
        status = ""

        def active() -> bool | None:
            nonlocal status
            status = look().status
            if status == "ERROR":
                raise Unmet(f"{what} ended in ERROR")
            return status == "ACTIVE" or None

        self.cloud.wait_for(active, ACTIVE_SECONDS, lambda: f"{what} is {status}")

    def _resolve(self, name: str, kind: str, wanted: list[str]) -> None:
        """Wait until the name server gives these values."""
        said = ""

        def look() -> bool | None:
            nonlocal said
            said = _answer(self.cloud, name, kind)
            return said == ", ".join(sorted(wanted)) or None

        self.cloud.wait_for(
            look, ANSWER_SECONDS, lambda: f"asked for {name} {kind}, the name server says {said}"
        )


def _answer(cloud: Cloud, name: str, kind: str) -> str:
    """What the name server says: the values in order, the code of its refusal, or why there is no answer."""
    try:
        query = dns.message.make_query(name, kind)
        answer = dns.query.udp(query, cloud.lab.controller.address, timeout=5.0)
    except (OSError, dns.exception.DNSException) as error:
        return f"nothing ({type(error).__name__}: {error})"
    values = sorted(str(value) for rrset in answer.answer for value in rrset)
    return ", ".join(values) or dns.rcode.to_text(answer.rcode())
