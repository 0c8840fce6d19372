"""What came of a check, and how a question becomes one."""

import logging
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import StrEnum

from stacklab.errors import Interrupted

_log = logging.getLogger(__name__)


class CheckState(StrEnum):
    """How a check ended. Skipped is what could not be asked, for a reason that is told."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class CheckResult:
    """What came of one check.

    service: the one that it belongs to. seconds: how long it took. error: why it failed or was skipped, in
    a line. detail: what helps to find out more, such as the end of a console log.
    """

    service: str
    name: str
    state: CheckState
    seconds: float = 0.0
    error: str = ""
    detail: str = ""


Checking = Generator[CheckResult, None, None]
"""A check at work: it gives each result as it comes, and puts away what it made when it is closed."""


class Unmet(Exception):
    """What was asked of the cloud is not so. detail: further lines that tell why."""

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class Unasked(Exception):
    """It cannot be asked now, and nobody is at fault."""


def ask(service: str, name: str, question: Callable[[], object]) -> CheckResult:
    """Ask one question: it passes when it returns; what it raises is its failure, but for Interrupted
    and Unasked.
    """
    begin = time.monotonic()
    try:
        question()
    except Interrupted:
        raise
    except Unasked as error:
        return CheckResult(service, name, CheckState.SKIPPED, _since(begin), str(error))
    except Unmet as error:
        return CheckResult(service, name, CheckState.FAILED, _since(begin), str(error), error.detail)
    except Exception as error:  # each client library has its own kinds
        _log.debug("check '%s' of %s", name, service, exc_info=True)
        words = f"{type(error).__name__}: {error}".rstrip(": ")
        return CheckResult(service, name, CheckState.FAILED, _since(begin), words)
    return CheckResult(service, name, CheckState.PASSED, _since(begin))


def _since(begin: float) -> float:
    return round(time.monotonic() - begin, 3)
