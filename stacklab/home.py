"""Where stacklab keeps things on this machine, and where its own data files lie."""

import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_STATE = Path("/var/lib/stacklab")
DEFAULT_CACHE = Path("/var/cache/stacklab")


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
        """The folders named by STACKLAB_STATE and STACKLAB_CACHE, or the defaults."""
        return cls(
            state=Path(os.environ.get("STACKLAB_STATE", DEFAULT_STATE)).absolute(),
            cache=Path(os.environ.get("STACKLAB_CACHE", DEFAULT_CACHE)).absolute(),
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
