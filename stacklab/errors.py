"""Every error that stacklab raises on purpose.

    StacklabError               exit code
      UsageError                2    wrong usage, name or file
        ModelError              2    problems in YAML, each with file:line:column
      HostUnfit                 3    this machine cannot do it; nothing was built
      StepFailed                1    a step of the work failed; `up` again resumes
        Unreached               1    another machine does not answer
      LabBusy                   1    another stacklab process works on the lab
      LabDamaged                1    a file or an image that the lab cannot do without has gone or is broken
      CheckFailed               4    a check of the cloud failed
      Interrupted               130  stopped by the user

The core raises them; `stacklab.cli.main` is the one place that prints them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class StacklabError(Exception):
    """An error written for the person who reads it.

    message: what failed, in one line. detail: further lines, such as the end of the log that matters.
    hint: what to type or do next.
    """

    exit_code = 1

    def __init__(self, message: str, *, detail: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint


class UsageError(StacklabError):
    """The command, a name or a file that the user gave is wrong."""

    exit_code = 2


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong in a file; line and column count from 1, 0 where there is none."""

    file: Path
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else str(self.file)
        return f"{place}: {self.message}"


class ModelError(UsageError):
    """All problems found in the YAML files, together."""

    def __init__(self, problems: Sequence[Problem], *, hint: str = "") -> None:
        self.problems = tuple(sorted(set(problems)))
        count = len(self.problems)
        super().__init__(
            f"{count} problem{'s' if count != 1 else ''} in the model",
            detail="\n".join(map(str, self.problems)),
            hint=hint,
        )


class HostUnfit(StacklabError):
    """This machine cannot build or run the lab; nothing was built."""

    exit_code = 3


class StepFailed(StacklabError):
    """A step of the work failed; what passed before it is kept."""


class Unreached(StepFailed):
    """A machine that the lab's nodes run on does not answer."""


class LabBusy(StacklabError):
    """Another stacklab process is working on the lab."""


class LabDamaged(StacklabError):
    """What stacklab knows of a lab, or what the lab stands on, has gone or is broken."""


class CheckFailed(StacklabError):
    """The cloud is there, and a check of it failed."""

    exit_code = 4


class Interrupted(StacklabError):
    """The user stopped the command; what passed before is kept."""

    exit_code = 130
