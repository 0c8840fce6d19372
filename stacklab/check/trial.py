"""The parts of scenarios with an instance in them: it is booted, reached and removed by the same code in all.

What a trial makes is named `stacklab-check-` and eight hex digits, so that nothing of a user is ever touched;
what an earlier run that was killed has left is removed first. All of it belongs to the administrator's
project.
"""

import contextlib
import io
import json
import re
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import openstack
import paramiko
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from keystoneauth1 import session as keystone_session
from keystoneauth1.exceptions import ClientException
from keystoneauth1.identity import v3
from openstack import exceptions
from openstack.connection import Connection

from stacklab.check.cloud import Cloud
from stacklab.check.removal import PREFIX, remove, remove_leftovers
from stacklab.check.result import Checking, CheckResult, CheckState, Unmet, ask
from stacklab.errors import Interrupted
from stacklab.model.service import Service

IMAGE, FLAVOR, PROVIDER = "guest", "tiny", "provider"

ROOM_SECONDS = 90.0
BUILD_SECONDS = 180.0
BOOT_SECONDS = 180.0  # emulated, on a machine that is busy with more than this
SSH_SECONDS = 60.0
CONSOLE_LINES = 25
# Placement's answer about a class of resources that no node has brought yet.
UNKNOWN_RESOURCE = 400
METADATA = "http://169.254.169.254/openstack/latest/meta_data.json"

UNDER_WAY: set[str] = set()
"""The names of trials that are being played at this moment; all others are leftovers."""

TrialStep = tuple[str, Callable[[], None]]
"""What a step of a scenario shows, in words, and the step itself."""


class Played(Protocol):
    """What a scenario plays with."""

    @property
    def cloud(self) -> Cloud:
        """The cloud that it is played in."""

    def remove(self) -> None:
        """Remove what was made, and see that each thing is gone."""


def new_name() -> str:
    """A name for all that one play makes; it is under way from now on."""
    name = PREFIX + secrets.token_hex(4)
    UNDER_WAY.add(name)
    return name


def play(trial: Played, steps: Sequence[TrialStep], service: Service, name: str) -> Checking:
    """Play a scenario: each step waits for the thing itself, and is skipped after one that does not pass.

    Whatever happens, what was made is removed again, which is the last result.
    """
    why = ""
    try:
        for words, step in steps:
            title = f"{name}: {words}"
            if why:
                yield CheckResult(service.name, title, CheckState.SKIPPED, error=why)
                continue
            trial.cloud.heed_stop()
            result = ask(service.name, title, step)
            why = "" if result.state is CheckState.PASSED else f"'{words}' {result.state}"
            yield result
    finally:
        removal = ask(service.name, f"{name}: nothing of it remains", trial.remove)
    yield removal


@dataclass
class Trial:
    """An instance of the guest, from the room for it to the last trace gone: the parts of scenarios.

    network: the name of the network that it is on; more: those of further ones. node: where it has to run,
    anywhere if empty. address: where it is reached, once it is known; addresses: those on each network.
    """

    cloud: Cloud
    network: str = PROVIDER
    more: tuple[str, ...] = ()
    node: str = ""
    image: str = IMAGE
    flavor: str = FLAVOR
    name: str = field(default_factory=new_name)
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    connection: Connection | None = None
    server: str = ""
    address: str = ""
    addresses: dict[str, str] = field(default_factory=dict)
    console: str = ""

    @property
    def _ssh_seconds(self) -> float:
        return SSH_SECONDS * self.cloud.lab.patience

    @property
    def api(self) -> Connection:
        """A client of the cloud's APIs."""
        if self.connection is None:
            self.connection = connect(self.cloud)
        return self.connection

    def clear(self) -> None:
        """Nothing remains of earlier runs that were killed; the first trial in a cloud sees to it."""
        if not self.cloud.cleared.is_set():
            remove_leftovers(self.cloud, self.api, UNDER_WAY)
            self.cloud.cleared.set()

    def find_room(self) -> None:
        """Ask Placement what Nova's scheduler will ask it. Before that, make room of what an earlier run
        left.
        """
        self.clear()
        flavor = self.api.compute.find_flavor(self.flavor, ignore_missing=False)
        amounts = {"VCPU": flavor.vcpus, "MEMORY_MB": flavor.ram, "DISK_GB": flavor.disk}
        for key, value in (flavor.extra_specs or {}).items():
            if key.startswith("resources:"):
                amounts[key.removeprefix("resources:")] = int(value)
        wanted = ",".join(f"{what}:{amount}" for what, amount in amounts.items() if amount)

        def look() -> bool | None:
            path = f"/allocation_candidates?limit=1&resources={wanted}"
            answer = self.api.placement.get(path, headers={"OpenStack-API-Version": "placement 1.29"})
            if answer.status_code == UNKNOWN_RESOURCE:
                return None
            exceptions.raise_from_response(answer)
            return bool(answer.json()["allocation_requests"]) or None

        self.cloud.wait_for(look, ROOM_SECONDS, lambda: f"Placement knows no node with room for {wanted}")

    def import_key(self) -> None:
        """Nova takes the public half of a new key."""
        public = self.key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        self.api.compute.create_keypair(name=self.name, public_key=f"{public.decode()} {self.name}")

    def boot(self) -> None:
        """An instance of the guest image gets ACTIVE; when not, Nova's fault says why."""
        compute = self.api.compute
        server = compute.create_server(
            name=self.name,
            flavor_id=compute.find_flavor(self.flavor, ignore_missing=False).id,
            networks=[
                {"uuid": self.api.network.find_network(name, ignore_missing=False).id}
                for name in (self.network, *self.more)
            ],
            key_name=self.name,
            **self.root(),
            **({"host": self.node} if self.node else {}),
        )
        self.server = server.id

        def look() -> bool | None:
            # For all that is told of a server Nova asks Neutron twice; for its id alone, nobody.
            answer = compute.get(f"/servers?uuid={self.server}&status=ACTIVE&status=ERROR")
            exceptions.raise_from_response(answer)
            return bool(answer.json()["servers"]) or None

        def otherwise() -> str:
            stuck = compute.get_server(self.server)
            return f"the instance is {stuck.status}, task {stuck.task_state},"

        self.cloud.wait_for(look, BUILD_SECONDS, otherwise)
        server = compute.get_server(self.server)
        if server.status == "ERROR":
            fault = server.fault or {}
            raise Unmet(
                f"the instance ended in ERROR: {fault.get('message', 'Nova gives no reason')}",
                detail=str(fault.get("details", "")),
            )
        if self.node not in ("", server.compute_host):
            raise Unmet(f"the instance runs on '{server.compute_host}', not on '{self.node}'")

    def root(self) -> dict[str, Any]:
        """What the instance's root disk is made of, as Nova is told."""
        return {"image_id": self.api.image.find_image(self.image, ignore_missing=False).id}

    def find_address(self) -> None:
        """Nova knows its address on each network."""
        listed = self.api.compute.get_server(self.server).addresses or {}
        self.addresses = {name: each[0]["addr"] for name, each in listed.items() if each}
        for name in (self.network, *self.more):
            if name not in self.addresses:
                found = self.addresses or "none at all"
                raise Unmet(f"the instance has no address on network '{name}', but {found}")
        self.address = self.addresses[self.network]

    def read_console(self) -> None:
        """The guest itself says that it is up, with the address that DHCP gave it."""
        pattern = re.compile(r"^stacklab guest (\S+) is up: (.+) after \d+ s", re.MULTILINE)
        trouble = ""

        def look() -> re.Match[str] | None:
            nonlocal trouble
            try:
                self.console = self._read_console()
            except (
                exceptions.SDKException,
                ClientException,
            ) as error:  # a node that emulates may be slow to tell
                trouble = f" ({error})"
            return pattern.search(self.console)

        def otherwise() -> str:
            return f"its console does not say that it is up{trouble}"

        with self.console_in_failure():
            said = self.cloud.wait_for(look, BOOT_SECONDS, otherwise, poll=2.0)
            if said[1] != self.name or said[2] not in self.addresses.values():
                raise Unmet(f"the guest is {said[1]} with {said[2]}, not {self.name} with {self.address}")

    def log_in(self) -> None:
        """Root logs in with the key that was injected."""
        with self.console_in_failure():
            said = self.run_inside("hostname").strip()
            if said != self.name:
                raise Unmet(f"{self.address} is '{said}', not '{self.name}'")

    def read_metadata(self) -> None:
        """The metadata service knows the instance that asks."""
        with self.console_in_failure():
            text = self.run_inside(f"wget -qO- -T 10 {METADATA} 2>&1")
            try:
                document = json.loads(text)
            except ValueError:
                raise Unmet(f"{METADATA} gives no JSON", detail=text[-1000:]) from None
            told = (document.get("uuid"), document.get("name"))
            if told != (self.server, self.name):
                raise Unmet(
                    f"the metadata are those of {told[1]} ({told[0]}), not of {self.name} ({self.server})"
                )

    def remove(self) -> None:
        """Remove what was made, and see that each thing is gone."""
        try:
            if self.connection is not None:
                remove(self.cloud, self.connection, self.name)
        finally:
            UNDER_WAY.discard(self.name)
            if self.connection is not None:
                self.connection.close()

    @contextlib.contextmanager
    def console_in_failure(self) -> Iterator[None]:
        """Add the end of the console log to a failure."""
        try:
            yield
        except Interrupted:
            raise
        except Exception as error:
            with contextlib.suppress(exceptions.SDKException, ClientException):
                self.console = self._read_console()
            lines = self.console.splitlines()[-CONSOLE_LINES:]
            console = ["the end of its console:", *lines] if lines else ["its console is empty"]
            words = (
                str(error) if isinstance(error, Unmet) else f"{type(error).__name__}: {error}".rstrip(": ")
            )
            detail = [error.detail] if isinstance(error, Unmet) and error.detail else []
            raise Unmet(words, detail="\n".join([*detail, *console])) from error

    def _read_console(self) -> str:
        output: str | None = self.api.compute.get_server_console_output(self.server)["output"]
        return (output or "").replace("\r", "")

    def run_inside(self, command: str) -> str:
        """What the command prints in the instance. The guest's SSH server may need a moment more."""
        with self._transport() as transport, transport.open_session(timeout=self._ssh_seconds) as channel:
            channel.settimeout(self._ssh_seconds)
            channel.exec_command(command)
            with channel.makefile("rb") as output:
                return output.read().decode(errors="replace")

    def ping(self, address: str, size: int = 56) -> None:
        """Ping an address from inside, with packets of `size` bytes. Raises Unmet when none is answered.

        The first of them may be lost while the way is learned.
        """
        said = self.run_inside(f"ping -c 3 -W 5 -s {size} {address} 2>&1")
        if f"bytes from {address}" not in said:
            raise Unmet(f"{address} does not answer a ping of {size} bytes from inside", detail=said)

    @contextlib.contextmanager
    def _transport(self) -> Iterator[paramiko.Transport]:
        """An SSH connection as root. The host key is as new as the instance, so there is none to compare it
        with.
        """
        private = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        key = paramiko.Ed25519Key.from_private_key(io.StringIO(private.decode()))
        # The socket is made by this thread, which is in the lab's network; paramiko's own thread only uses
        # it.
        with contextlib.closing(paramiko.Transport(self._connect_ssh())) as transport:
            transport.banner_timeout = transport.handshake_timeout = self._ssh_seconds
            transport.auth_timeout = self._ssh_seconds
            transport.start_client(timeout=self._ssh_seconds)
            transport.auth_publickey("root", key)
            yield transport

    def _connect_ssh(self) -> socket.socket:
        said = ""

        def look() -> socket.socket | None:
            nonlocal said
            try:
                return socket.create_connection((self.address, 22), timeout=5.0)
            except OSError as error:
                said = str(error)
                return None

        return self.cloud.wait_for(
            look, SSH_SECONDS, lambda: f"{self.address} does not accept port 22 ({said})", poll=0.3
        )


def connect(cloud: Cloud) -> Connection:
    """A client as the cloud's administrator, for use in the lab's network."""
    credentials = cloud.credentials
    auth = v3.Password(
        auth_url=credentials["OS_AUTH_URL"],
        username=credentials["OS_USERNAME"],
        password=credentials["OS_PASSWORD"],
        project_name=credentials["OS_PROJECT_NAME"],
        user_domain_id=credentials["OS_USER_DOMAIN_ID"],
        project_domain_id=credentials["OS_PROJECT_DOMAIN_ID"],
    )
    http = requests.Session()
    http.trust_env = False  # no proxy of the environment stands between this machine and its lab
    return openstack.connection.Connection(
        session=keystone_session.Session(auth=auth, session=http, timeout=60 * cloud.lab.patience),
        region_name=credentials["OS_REGION_NAME"],
    )
