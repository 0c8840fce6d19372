"""Where stacklab keeps things on this machine, and where its own data files lie."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from stacklab.errors import UsageError

DEFAULT_STATE = Path("/var/lib/stacklab")
DEFAULT_CACHE = Path("/var/cache/stacklab")
# ssh, Ansible and overlay mounts split paths at spaces, colons and commas, and expand % and quotes.
_MISREAD = re.compile(r"[^\w/.+@=~-]")


@dataclass(frozen=True)
class Home:
    """The two folders of stacklab on a machine.

    state: the labs; gone when they are destroyed. cache: images and downloads, which any lab can be rebuilt
    from.
    """

    state: Path
    cache: Path

    @classmethod
    def from_environment(cls) -> "Home":
        """The folders named by STACKLAB_STATE and STACKLAB_CACHE, or the defaults.

        Raises UsageError for a path with a character that the tools which get it would misread.
        """
        home = cls.named()
        for variable, folder in (("STACKLAB_STATE", home.state), ("STACKLAB_CACHE", home.cache)):
            found = _MISREAD.search(str(folder))
            if found:
                raise UsageError(
                    f"{variable} is '{folder}', and a path with '{found[0]}' in it cannot be used",
                    hint=f"export {variable}={_MISREAD.sub('-', str(folder))}",
                )
        return home

    @classmethod
    def named(cls) -> "Home":
        """The same, whether or not it can be used: for those who only look."""
        return cls(
            state=Path(os.environ.get("STACKLAB_STATE") or DEFAULT_STATE).absolute(),
            cache=Path(os.environ.get("STACKLAB_CACHE") or DEFAULT_CACHE).absolute(),
        )

    @property
    def labs(self) -> Path:
        """The folder with one folder per lab."""
        return self.state / "labs"


def data_dir() -> Path:
    """The folder that holds profiles/, playbooks/ and templates/.

    Inside the wheel, or the checkout's root.
    """
    packaged = Path(__file__).parent / "_data"
    return packaged if packaged.is_dir() else Path(__file__).parents[1]
