"""The cloud under examination: what every check is handed."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from stacklab.blueprint import Blueprint
from stacklab.check.api import ANSWER_SECONDS, Api
from stacklab.check.result import Unmet
from stacklab.errors import Interrupted
from stacklab.host.checks import host_facts
from stacklab.lab.lab import Lab
from stacklab.lab.secrets import ensure_secrets
from stacklab.model.service import Service
from stacklab.render import Renderer

PAUSE_TO_QUESTION = 2.0
LONGEST_PAUSE = 10.0
Found = TypeVar("Found")


def pause_after(began: float, at_least: float) -> float:
    """How many seconds to wait until a cloud is asked again, when asking began at that monotonic time.

    One that answers slowly is busy, and questions keep it from what it is asked about.
    """
    return max(at_least, min(PAUSE_TO_QUESTION * (time.monotonic() - began), LONGEST_PAUSE))


@dataclass(frozen=True)
class Cloud:
    """A lab's cloud up to a layer.

    credentials: the OS_* variables of its administrator. api: its APIs over plain HTTP, for use in the lab's
    network. stopping: set when the checks are to end early. cleared: when nothing of earlier checks is left.
    """

    lab: Lab
    blueprint: Blueprint
    layer: int
    credentials: Mapping[str, str]
    api: Api
    stopping: threading.Event = field(default_factory=threading.Event)
    cleared: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def of(cls, lab: Lab, blueprint: Blueprint, layer: int) -> "Cloud":
        """The cloud of a lab that runs. Nothing is asked of it yet."""
        credentials = lab.environment()
        return cls(
            lab, blueprint, layer, credentials, Api(credentials, seconds=ANSWER_SECONDS * lab.patience)
        )

    @cached_property
    def renderer(self) -> Renderer:
        """Renders the commands of checks, with the same names as in the services' files."""
        secrets = ensure_secrets(self.lab.folder / "secrets.yaml", self.blueprint.services)
        return Renderer(self.lab.name, self.blueprint, secrets, host_facts(self.lab.home, self.lab.settings))

    @property
    def services(self) -> tuple[Service, ...]:
        """The services of the layers that are checked."""
        return self.blueprint.up_to(self.layer)

    def wait_for(
        self,
        look: Callable[[], Found | None],
        seconds: float,
        otherwise: Callable[[], str],
        poll: float = 0.5,
    ) -> Found:
        """Look until there is something, and return it. poll: the seconds between, more when a look is slow.

        Raises Unmet with `otherwise()` after `seconds`, more where nodes are emulated; Interrupted when
        the checks are to end.
        """
        seconds *= self.lab.patience
        deadline = time.monotonic() + seconds
        while True:
            began = time.monotonic()
            found = look()
            if found is not None:
                return found
            if time.monotonic() > deadline:
                raise Unmet(f"{otherwise()} after {seconds:.0f} s")
            self.stopping.wait(pause_after(began, poll))
            self.heed_stop()

    def heed_stop(self) -> None:
        """Raise Interrupted when the checks are to end."""
        if self.stopping.is_set():
            raise Interrupted("the checks were interrupted")
