"""Packages of a suite, resolved and fetched by the host's apt with a state of its own.

The host's own lists, package state and locks are neither read nor written, so a Debian 12 host can look into
Debian 13 and nothing here waits for an `apt` that somebody else runs, but for stacklab's own.
"""

import os
import re
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from stacklab import lock
from stacklab.children import BOUND
from stacklab.errors import StepFailed
from stacklab.host.apt import Mirror


class Archive:
    """The packages of a suite at a mirror.

    state: a folder of this archive's own; lists and downloaded packages stay in it, so that it also works
    offline. pockets: as in Mirror.sources.
    """

    def __init__(
        self,
        mirror: Mirror,
        pockets: Sequence[str],
        state: Path,
        *,
        components: Sequence[str] = ("main",),
        architecture: str = "amd64",
    ) -> None:
        self.mirror = mirror
        self.pockets = tuple(pockets)
        self.components = tuple(components)
        self.state = state
        self.architecture = architecture

    def update(self) -> None:
        """Fetch the suite's package lists. Raises StepFailed with apt's own words."""
        self._run("apt-get", "update", "-qq")

    def versions(self, names: Sequence[str]) -> dict[str, str]:
        """The candidate version of each package, from the lists at hand.

        Raises StepFailed when one of them is not in the lists.
        """
        text = self._run("apt-cache", "show", "--no-all-versions", *names)
        found = dict(re.findall(r"^Package: (\S+)$.*?^Version: (\S+)$", text, re.MULTILINE | re.DOTALL))
        return {name: found[name] for name in names}

    def all_versions(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Every version of each package in the lists at hand, the newest first; unknown ones are left out."""
        found: dict[str, list[str]] = {}
        for line in self._run("apt-cache", "madison", *names).splitlines():
            name, version, _ = (word.strip() for word in line.split("|", 2))
            if version not in found.setdefault(name, []):
                found[name].append(version)
        return found

    def dependencies(self, name: str) -> list[str]:
        """The names in a package's Depends, the first of each choice."""
        text = self._run("apt-cache", "show", "--no-all-versions", name)
        found = re.search(r"^Depends: (.*)$", text, re.MULTILINE)
        return [word.split()[0] for word in found[1].split(",")] if found else []

    def fetch(self, names: Sequence[str], *, closure: bool) -> list[Path]:
        """Download packages, with all that they depend on if `closure`, and return the files.

        Packages are not fetched again, unless their download was cut off. Raises StepFailed.
        """
        if closure:
            options = ["--no-install-recommends", "--download-only", "-y"]
            command = ["apt-get", "install", "-qq", *options, *names]
        else:
            command = ["apt-get", "download", "-qq", *names]
        # apt prints no address for what is downloaded already, so it is shown a folder without packages.
        empty = self.state / "none"
        (empty / "partial").mkdir(parents=True, exist_ok=True)
        with self._alone():
            listing = self._apt(*command, "--print-uris", "-o", f"Dir::Cache::archives={empty}", folder=empty)
            listed = re.findall(r"^'[^']+' (\S+\.deb) (\d+)", listing, re.MULTILINE)
            sizes = {self._archives / name: int(size) for name, size in listed}
            lacking = [file for file, size in sizes.items() if not _is_whole(file, size)]
            for file in lacking:  # apt would take what was cut off for the package
                file.unlink(missing_ok=True)
            if lacking:
                self._apt(*command)
        return list(sizes)

    def unpack(self, files: Sequence[Path], root: Path) -> None:
        """Unpack packages below `root`, which has /usr merged as Debian has; no maintainer script runs."""
        for folder in ("bin", "sbin", "lib", "lib64"):
            (root / "usr" / folder).mkdir(parents=True, exist_ok=True)
            if not (root / folder).is_symlink():
                (root / folder).symlink_to(f"usr/{folder}")
        for file in files:
            with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", file], stdout=subprocess.PIPE) as source:
                # dpkg-deb -x would replace the link /lib by a folder where a package still ships /lib.
                target = subprocess.run(
                    ["tar", "-x", "--keep-directory-symlink", "-C", root], stdin=source.stdout, check=False
                )
            if source.returncode or target.returncode:
                raise StepFailed(f"cannot unpack {file.name}", hint="is there space left on the disk?")

    @property
    def _archives(self) -> Path:
        return self.state / "archives"

    def _run(self, *command: str) -> str:
        with self._alone():
            return self._apt(*command)

    def _alone(self) -> AbstractContextManager[None]:
        """Others may build from the same state, and apt does not wait for its locks on it."""
        return lock.hold(self.state / ".lock", "the package cache", wait=True)

    def _apt(self, *command: str, folder: Path | None = None) -> str:
        environment = {**os.environ, "APT_CONFIG": str(self._configure()), "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            [*BOUND, *command],
            cwd=folder or self._archives,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            what = f"{' '.join(command[:2])} failed for {self.pockets[0]}"
            raise StepFailed(what, detail=done.stderr.strip())
        return done.stdout

    def _configure(self) -> Path:
        """Write the configuration that keeps apt inside the state folder, and return its path."""
        for folder in ("lists/partial", "archives/partial"):
            (self.state / folder).mkdir(parents=True, exist_ok=True)
        sources = self.state / "sources.list"
        configuration = self.state / "apt.conf"
        wanted = {
            sources: "\n".join(self.mirror.sources(self.pockets, self.components)) + "\n",
            self.state / "status": "",
            configuration: "".join(
                f"{line};\n"
                for line in (
                    f'APT::Architecture "{self.architecture}"',
                    f'APT::Architectures {{ "{self.architecture}"; }}',
                    # The folder may lie where apt's own user cannot go.
                    'APT::Sandbox::User "root"',
                    'Acquire::Languages "none"',
                    f'Dir::State "{self.state}"',
                    f'Dir::State::lists "{self.state}/lists"',
                    f'Dir::State::status "{self.state}/status"',
                    f'Dir::Cache "{self.state}"',
                    f'Dir::Cache::archives "{self._archives}"',
                    'Dir::Cache::srcpkgcache ""',
                    'Acquire::GzipIndexes "true"',
                    f'Dir::Etc::sourcelist "{sources}"',
                    'Dir::Etc::sourceparts "/dev/null"',
                    'Dir::Etc::parts "/dev/null"',
                    'Dir::Etc::main "/dev/null"',
                    'Dir::Etc::preferences "/dev/null"',
                    'Dir::Etc::preferencesparts "/dev/null"',
                    *([f'Dir::Etc::trusted "{self.mirror.keyring}"'] if self.mirror.keyring else []),
                    *([f'Dir::Etc::trustedparts "{self.state}/lists"'] if self.mirror.keyring else []),
                    *self.mirror.apt_options,
                )
            ),
        }
        for path, text in wanted.items():
            if not path.is_file() or path.read_text() != text:
                path.write_text(text)
        return configuration


def _is_whole(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size
