"""The package mirror of a lab: the host's own, read from its apt configuration.

No host name of a mirror stands in stacklab. A machine that can install packages can build labs, and whatever
its owner did to apt (a local mirror, a proxy, a snapshot whose Release file has expired) holds for labs too.
Formats: sources.list(5), both one-line and deb822; apt.conf(5) through `apt-config dump`.
"""

import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from stacklab.errors import HostUnfit

DEFAULT_KEYRING = "usr/share/keyrings/{distribution}-archive-keyring.gpg"

# Acquire's subtrees that say how indexes are stored on the host, not how packages are reached.
_NOT_FOR_LABS = re.compile(r"Acquire::(IndexTargets|Changelogs|CompressionTypes|cdrom|GzipIndexes|Allow)")

_ONE_LINE = re.compile(
    r"\s*deb\s+(?:\[(?P<options>[^]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<components>[^#]*)"
)


@dataclass(frozen=True)
class Source:
    """One entry of apt's sources: an archive, a suite of it, and how apt is told to trust it."""

    uri: str
    suite: str
    components: tuple[str, ...] = ()
    signed_by: tuple[str, ...] = ()
    trusted: bool = False


@dataclass(frozen=True)
class Mirror:
    """Where packages come from, and what apt needs to be told to fetch them.

    archive, security: URIs of the distribution's main and security archives, in the host's order.
    keyring: the file with the archive's keys; None when the host names none (apt's own default then).
    apt_options: lines of apt.conf without the final semicolon, as `mmdebstrap --aptopt` takes them.
    trusted: the host takes the archive unsigned ([trusted=yes]).
    """

    archive: tuple[str, ...]
    security: tuple[str, ...] = ()
    keyring: Path | None = None
    apt_options: tuple[str, ...] = ()
    trusted: bool = False

    def sources(self, pockets: Sequence[str], components: Sequence[str] = ("main",)) -> list[str]:
        """One-line `deb` entries for a release's pockets (`trixie`, `trixie-updates`, `trixie-security`).

        For mmdebstrap and for /etc/apt/sources.list inside an image alike. A security pocket is left out when
        the host has no security archive.
        """
        option = "[trusted=yes] " if self.trusted else ""
        return [
            f"deb {option}{uri} {pocket} {' '.join(components)}"
            for pocket in pockets
            for uri in (self.security if is_security(pocket) else self.archive)
        ]

    def apt_configuration(self) -> str:
        """The options as the text of a file for /etc/apt/apt.conf.d."""
        return "".join(f"{option};\n" for option in self.apt_options)


def is_security(suite: str) -> bool:
    """Whether a suite belongs to the security archive: `trixie-security`, or `bullseye/updates` of old."""
    return suite.endswith(("-security", "/updates"))


def host_mirror(distribution: str = "debian", root: Path = Path("/")) -> Mirror:
    """The mirror of `distribution` that the machine at `root` installs its own packages from.

    Raises HostUnfit when its apt configuration names none.
    """
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False)
    return find_mirror(distribution, root, options=acquire_options(dump.stdout))


def find_mirror(distribution: str, root: Path, options: Sequence[str] = ()) -> Mirror:
    """Pick the distribution's archives among the sources in `root`/etc/apt.

    Raises HostUnfit when there are none.
    """
    sources = list(read_sources(root))
    own = [source for source in sources if _is_of(distribution, source, root)]
    archive = [source for source in own if not is_security(source.suite)]
    if not archive:
        seen = "\n".join(f"{source.uri} {source.suite}" for source in sources) or "no source at all"
        raise HostUnfit(
            f"no mirror of {distribution} in this machine's apt configuration",
            detail=seen,
            hint=f"name one in /etc/apt/sources.list.d/{distribution}.sources",
        )
    return Mirror(
        archive=_uris(archive, root),
        security=_uris([source for source in own if is_security(source.suite)], root),
        keyring=_keyring(distribution, archive, root),
        apt_options=tuple(options),
        trusted=any(source.trusted for source in archive),
    )


def acquire_options(dump: str) -> list[str]:
    """From the text of `apt-config dump`: the options on how packages are fetched (proxies, validity)."""
    lines = (line.strip().removesuffix(";") for line in dump.splitlines())
    return [
        line
        for line in lines
        if line.startswith("Acquire::") and not line.endswith(' ""') and not _NOT_FOR_LABS.match(line)
    ]


def read_sources(root: Path) -> Iterator[Source]:
    """All enabled binary sources in `root`/etc/apt, in apt's order."""
    folder = root / "etc/apt"
    files = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]
    for file in files:
        if not file.is_file():
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        if file.suffix == ".list":
            yield from parse_one_line(text)
        elif file.suffix == ".sources":
            yield from parse_deb822(text)


def parse_one_line(text: str) -> Iterator[Source]:
    """Entries `deb [options] uri suite components...`; `deb-src` and comments are passed over."""
    for line in text.splitlines():
        found = _ONE_LINE.match(line)
        if not found:
            continue
        options = dict(word.partition("=")[::2] for word in (found["options"] or "").split() if "=" in word)
        yield Source(
            uri=found["uri"],
            suite=found["suite"],
            components=tuple(found["components"].split()),
            signed_by=tuple(options.get("signed-by", "").replace(",", " ").split()),
            trusted=_is_yes(options.get("trusted", "")),
        )


def parse_deb822(text: str) -> Iterator[Source]:
    """Entries of a .sources file: one Source for each URI and suite of each enabled stanza."""
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields = _fields(stanza)
        enabled = fields.get("enabled", "yes").lower() not in ("no", "false", "0")
        if not enabled or "deb" not in fields.get("types", "").split():
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                signed_by = fields.get("signed-by", "")
                yield Source(
                    uri=uri,
                    suite=suite,
                    components=tuple(fields.get("components", "").split()),
                    # A key block may stand in the field itself; then there is no file to name.
                    signed_by=() if "BEGIN PGP" in signed_by else tuple(signed_by.split()),
                    trusted=_is_yes(fields.get("trusted", "")),
                )


def _fields(stanza: str) -> dict[str, str]:
    """The fields of one deb822 stanza, names in lower case, continuation lines joined by a space."""
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if line[0] in " \t":
            if name:
                fields[name] += " " + line.strip()
        else:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def _is_yes(word: str) -> bool:
    return word.lower() in ("yes", "true", "1")


def _is_of(distribution: str, source: Source, root: Path) -> bool:
    """Whether a source is the distribution's own, and not of a third party that uses its suites' names.

    What the archive says of itself (Origin in its Release file) decides; before the first `apt-get update`
    the keyring does, then the last part of the URI.
    """
    if source.uri.startswith("cdrom:") or "main" not in source.components:
        return False
    for name in ("InRelease", "Release"):
        release = root / "var/lib/apt/lists" / f"{_list_name(source.uri)}_dists_{source.suite}_{name}"
        if release.is_file():
            origin = re.search(r"^Origin:\s*(\S+)", release.read_text(errors="replace"), re.MULTILINE)
            return origin is not None and origin[1].lower() == distribution
    if source.signed_by:
        return any(f"{distribution}-archive" in Path(path).name for path in source.signed_by)
    name = urlsplit(source.uri).path.rstrip("/").rpartition("/")[2]
    return name.removesuffix(".list").removesuffix("-security") == distribution


def _list_name(uri: str) -> str:
    """Apt's name for what it keeps of a URI in /var/lib/apt/lists (URItoFileName in apt-pkg/strutl.cc)."""
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    return (host + parts.path).rstrip("/").replace("_", "%5f").replace("/", "_")


def _uris(sources: Iterable[Source], root: Path) -> tuple[str, ...]:
    """The URIs without repeats; a `mirror+file:` list (Debian's cloud images) becomes what it lists.

    Such a file does not exist inside an image, so its name would be of no use there.
    """
    uris: dict[str, None] = {}
    for source in sources:
        scheme, _, rest = source.uri.partition(":")
        if scheme != "mirror+file":
            uris[source.uri] = None
            continue
        listed = root / ("/" + rest.lstrip("/")).lstrip("/")
        for line in listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []:
            if line.strip() and not line.startswith("#"):
                uris[line.split()[0]] = None
    return tuple(uris)


def _keyring(distribution: str, archive: Sequence[Source], root: Path) -> Path | None:
    named = [path for source in archive for path in source.signed_by if path.startswith("/")]
    for path in [*named, "/" + DEFAULT_KEYRING.format(distribution=distribution)]:
        if (root / path.lstrip("/")).is_file():
            return Path(path)
    return None


def missing_suite(mirror: Mirror, suite: str, *, seconds: float = 5.0) -> str:
    """What is wrong with the mirror, in one line: it does not answer, or lacks the suite. Empty when it does.

    The first URI that has the suite is enough. Asks for one byte of the suite's InRelease file.
    """
    problem = ""
    for uri in mirror.archive:
        problem = _missing(f"{uri.rstrip('/')}/dists/{suite}/InRelease", _proxies(mirror), seconds)
        if not problem:
            return ""
    return problem


def _missing(url: str, proxies: dict[str, str], seconds: float) -> str:
    # With it come HTTP, TLS and e-mail; `plan` asks no mirror, and need not wait for them.
    import urllib.error
    import urllib.request

    scheme, _, rest = url.partition(":")
    if scheme in ("file", "copy"):
        return "" if Path("/" + rest.lstrip("/")).is_file() else f"there is no {url}"
    if scheme not in ("http", "https"):  # apt's own methods (mirror, tor, ...): apt will tell
        return ""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies or None))
    request = urllib.request.Request(url, headers={"Range": "bytes=0-0", "User-Agent": "Debian APT-HTTP/1.3"})
    try:
        with opener.open(request, timeout=seconds):
            return ""
    except urllib.error.HTTPError as error:
        return f"the mirror answers {error.code} for {url}"
    except OSError as error:
        return f"the mirror does not answer ({getattr(error, 'reason', error)}): {url}"


def _proxies(mirror: Mirror) -> dict[str, str]:
    """The proxies that apt is told to use; where there are none, those of the environment count."""
    found = re.findall(r'Acquire::(https?)::Proxy "([^"]+)"', "\n".join(mirror.apt_options))
    return {scheme: proxy for scheme, proxy in found if proxy != "DIRECT"}
