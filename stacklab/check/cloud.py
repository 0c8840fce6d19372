"""The cloud under examination: what every check is handed."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from stacklab.blueprint import Blueprint
from stacklab.check.api import Api
from stacklab.check.result import Unmet
from stacklab.errors import Interrupted
from stacklab.lab.lab import Lab
from stacklab.model.service import Service

Found = TypeVar("Found")


@dataclass(frozen=True)
class Cloud:
    """A lab's cloud up to a layer. stopping: set when the checks are to end early."""

    lab: Lab
    blueprint: Blueprint
    layer: int
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def services(self) -> tuple[Service, ...]:
        """The services of the layers that are checked."""
        return self.blueprint.up_to(self.layer)

    @cached_property
    def credentials(self) -> dict[str, str]:
        """The OS_* variables of the administrator."""
        return self.lab.environment()

    @cached_property
    def api(self) -> Api:
        """Its APIs over plain HTTP. To be used in the lab's network."""
        return Api(self.credentials)

    def wait_for(
        self,
        look: Callable[[], Found | None],
        seconds: float,
        otherwise: Callable[[], str],
        poll: float = 0.5,
    ) -> Found:
        """Look every `poll` seconds until there is something, and return it.

        Raises Unmet with `otherwise()` after `seconds`, Interrupted when the checks are to end.
        """
        deadline = time.monotonic() + seconds
        while True:
            found = look()
            if found is not None:
                return found
            if time.monotonic() > deadline:
                raise Unmet(f"{otherwise()} after {seconds:.0f} s")
            if self.stopping.wait(poll):
                raise Interrupted("the checks were interrupted")
