"""The package mirror is read from whatever the host's apt configuration looks like."""

import hashlib
import http.server
import os
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from stacklab.errors import HostUnfit
from stacklab.host.apt import Mirror, acquire_options, find_mirror, missing_suite
from stacklab.host.archive import Archive

POCKETS = ("trixie", "trixie-updates", "trixie-security")
KEYRING = "usr/share/keyrings/debian-archive-keyring.gpg"


@pytest.fixture
def host(tmp_path: Path) -> Callable[..., Path]:
    """Write files below the root of a made-up host, and return the root."""

    def write(files: dict[str, str]) -> Path:
        for name, text in {KEYRING: "keys", **files}.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path

    return write


DEB822 = """\
# The mirror of the house
Types: deb deb-src
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.invalid/debian-security
Suites: bookworm-security
Components: main
Signed-By:
 /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
Enabled: no
URIs: http://old.invalid/debian
Suites: bookworm
Components: main
"""


def test_deb822_sources_serve_any_suite_of_the_same_archive(host: Callable[..., Path]) -> None:
    mirror = find_mirror("debian", host({"etc/apt/sources.list.d/debian.sources": DEB822}))
    assert mirror.sources(POCKETS, ["main"]) == [
        "deb http://mirror.invalid/debian trixie main",
        "deb http://mirror.invalid/debian trixie-updates main",
        "deb http://mirror.invalid/debian-security trixie-security main",
    ]
    assert mirror.keyring == Path("/") / KEYRING


def test_one_line_sources_with_options_and_comments(host: Callable[..., Path]) -> None:
    text = (
        "deb-src http://mirror.invalid/debian bookworm main\n"
        "# deb http://old.invalid/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
        "http://mirror.invalid/debian bookworm main non-free # ours\n"
        "deb http://mirror.invalid/debian-security bookworm-security main\n"
    )
    mirror = find_mirror("debian", host({"etc/apt/sources.list": text}))
    assert mirror.archive == ("http://mirror.invalid/debian",)
    assert mirror.security == ("http://mirror.invalid/debian-security",)
    assert not mirror.trusted


def test_an_unsigned_mirror_stays_trusted(host: Callable[..., Path]) -> None:
    text = "deb [trusted=yes] http://mirror.invalid/debian trixie main\n"
    mirror = find_mirror("debian", host({"etc/apt/sources.list": text}))
    assert mirror.sources(["trixie"]) == ["deb [trusted=yes] http://mirror.invalid/debian trixie main"]


def test_a_mirror_list_of_a_cloud_image_is_read(host: Callable[..., Path]) -> None:
    source = (
        "Types: deb\nURIs: mirror+file:///etc/apt/mirrors/debian.list\nSuites: trixie\nComponents: main\n"
    )
    files = {
        "etc/apt/sources.list.d/debian.sources": source,
        "etc/apt/mirrors/debian.list": "# two\nhttp://a.invalid/debian\tpriority:1\nhttp://b.invalid/debian\n",
    }
    assert find_mirror("debian", host(files)).archive == (
        "http://a.invalid/debian",
        "http://b.invalid/debian",
    )


def test_third_parties_that_use_the_suite_names_of_debian_are_passed_over(host: Callable[..., Path]) -> None:
    files = {
        "etc/apt/sources.list": "deb http://packages.invalid/mirror bookworm main\n"
        "deb http://unsigned.invalid/tools bookworm main\n",
        "etc/apt/sources.list.d/tools.list": (
            "deb [signed-by=/usr/share/keyrings/tools.gpg] http://apt.tools.invalid bookworm main\n"
        ),
        # What the archives said of themselves, as apt keeps it:
        "var/lib/apt/lists/packages.invalid_mirror_dists_bookworm_InRelease": "Origin: Debian\n",
        "var/lib/apt/lists/unsigned.invalid_tools_dists_bookworm_InRelease": "Origin: Tools\n",
    }
    assert find_mirror("debian", host(files)).archive == ("http://packages.invalid/mirror",)


def test_a_key_in_the_sources_file_itself_is_no_path(host: Callable[..., Path]) -> None:
    source = (
        "Types: deb\nURIs: http://mirror.invalid/debian\nSuites: trixie\nComponents: main\n"
        "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDMEZ\n -----END PGP PUBLIC KEY BLOCK-----\n"
    )
    mirror = find_mirror("debian", host({"etc/apt/sources.list.d/debian.sources": source}))
    assert mirror.keyring == Path("/") / KEYRING


def test_a_host_without_a_mirror_is_told_what_was_seen(host: Callable[..., Path]) -> None:
    with pytest.raises(HostUnfit) as caught:
        find_mirror("debian", host({"etc/apt/sources.list": "deb http://x.invalid/ubuntu noble main\n"}))
    assert "http://x.invalid/ubuntu noble" in caught.value.detail
    assert caught.value.exit_code == 3


def test_without_a_security_archive_its_pocket_is_left_out() -> None:
    assert Mirror(archive=("file:/mirror",)).sources(POCKETS) == [
        "deb file:/mirror trixie main",
        "deb file:/mirror trixie-updates main",
    ]


def test_options_on_fetching_are_kept_and_those_on_storing_are_not() -> None:
    dump = (
        'Acquire "";\nAcquire::http::Proxy "http://proxy.invalid:3128";\nAcquire::GzipIndexes "true";\n'
        'Acquire::Check-Valid-Until "false";\nAcquire::AllowInsecureRepositories "0";\nAcquire::cdrom "";\n'
        'Acquire::IndexTargets::deb::Packages::MetaKey "x";\nAPT::Architecture "amd64";\n'
    )
    options = acquire_options(dump)
    assert options == [
        'Acquire::http::Proxy "http://proxy.invalid:3128"',
        'Acquire::Check-Valid-Until "false"',
    ]
    configuration = Mirror(archive=(), apt_options=tuple(options)).apt_configuration()
    assert configuration.splitlines()[1] == 'Acquire::Check-Valid-Until "false";'


def test_apt_itself_understands_the_entries(tmp_path: Path) -> None:
    mirror = Mirror(archive=("http://mirror.invalid/debian",), trusted=True)
    sources = tmp_path / "sources.list"
    sources.write_text("\n".join(mirror.sources(POCKETS)) + "\n")
    options = ["-o", f"Dir::Etc::sourcelist={sources}", "-o", "Dir::Etc::sourceparts=/dev/null"]
    done = subprocess.run(
        ["apt-get", *options, "update", "--print-uris"], capture_output=True, text=True, check=True
    )
    suites = [line.split("/dists/")[1].split("/")[0] for line in done.stdout.splitlines()]
    assert sorted(set(suites)) == ["trixie", "trixie-updates"]


def test_a_mirror_in_a_folder_is_looked_into(tmp_path: Path) -> None:
    release = tmp_path / "dists/trixie/InRelease"
    release.parent.mkdir(parents=True)
    release.write_text("Origin: Debian\n")
    mirror = Mirror(archive=(f"file:{tmp_path}",))
    assert missing_suite(mirror, "trixie") == ""
    assert "dists/forky/InRelease" in missing_suite(mirror, "forky")


def test_a_mirror_that_does_not_answer_is_named() -> None:
    mirror = Mirror(archive=("http://127.0.0.1:9/debian",))
    assert "does not answer" in missing_suite(mirror, "trixie")
    assert "http://127.0.0.1:9/debian" in missing_suite(mirror, "trixie")


def test_one_apt_at_a_time_works_on_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apt refuses where another has its locks, as this stand-in for it does."""
    apt = tmp_path / "bin" / "apt-get"
    apt.parent.mkdir()
    apt.write_text('#!/bin/sh\nmkdir "$APT_CONFIG.lock" && sleep 0.2 && rmdir "$APT_CONFIG.lock"\n')
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(apt.parent), prepend=os.pathsep)
    archive = Archive(Mirror(("http://mirror.example/debian",)), POCKETS, tmp_path / "state")
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(archive.update) for _ in range(3)]:
            done.result()


def test_a_download_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    tree = tmp_path / "package" / "DEBIAN"
    tree.mkdir(parents=True)
    fields = "Package: hello\nVersion: 1\nArchitecture: all\nMaintainer: us\nDescription: hello\n"
    (tree / "control").write_text(fields)
    index = tmp_path / "dists" / "trixie" / "main" / "binary-amd64" / "Packages"
    index.parent.mkdir(parents=True)
    whole = tmp_path / "hello_1_all.deb"
    subprocess.run(["dpkg-deb", "--build", tree.parent, whole], check=True, capture_output=True)
    size, digest = whole.stat().st_size, hashlib.sha256(whole.read_bytes()).hexdigest()
    index.write_text(f"{fields}Filename: {whole.name}\nSize: {size}\nSHA256: {digest}\n")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever).start()
        mirror = Mirror((f"http://127.0.0.1:{server.server_port}",), trusted=True)
        archive = Archive(mirror, ("trixie",), tmp_path / "state")
        archive.update()
        (file,) = archive.fetch(["hello"], closure=False)
        file.write_bytes(whole.read_bytes()[:100])
        assert archive.fetch(["hello"], closure=False) == [file]
        assert file.read_bytes() == whole.read_bytes()
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass
