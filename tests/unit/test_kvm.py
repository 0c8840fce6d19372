"""KVM is believed only when a kernel has booted with it, and only then remembered."""

import os
from pathlib import Path

import pytest

from stacklab.host import kvm
from stacklab.host.kvm import Proof, boot, kernel_at_hand
from stacklab.images.guest import Guest


@pytest.fixture(autouse=True)
def processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that is not emulated, whatever these tests run on."""
    monkeypatch.setattr(kvm, "is_emulated", lambda: False)


def program(folder: Path, script: str) -> str:
    """A stand-in for QEMU: the real one would need a kernel and a machine whose KVM is known."""
    file = folder / "qemu"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return str(file)


def test_a_kernel_that_gets_to_its_end_proves_it(tmp_path: Path) -> None:
    qemu = program(
        tmp_path,
        "echo 'Linux version 6'; echo 'VFS: Unable to mount root fs on unknown-block(0,0)'; sleep 60",
    )
    assert boot(Path("vmlinuz"), program=qemu, seconds=20) == Proof(True, "a kernel booted")


def test_a_kernel_that_hangs_is_given_up_on_after_its_time(tmp_path: Path) -> None:
    proof = boot(Path("vmlinuz"), program=program(tmp_path, "echo SeaBIOS; exec sleep 60"), seconds=3)
    assert str(proof) == "no: a kernel did not boot within 3 s and ended after saying: SeaBIOS"


def test_an_internal_error_of_kvm_ends_it_at_once(tmp_path: Path) -> None:
    script = "echo 'KVM internal error. Suberror: 1'; exec sleep 60"
    proof = boot(Path("vmlinuz"), program=program(tmp_path, script), seconds=20)
    assert str(proof) == "no: a kernel did not boot: KVM internal error. Suberror: 1"


def test_no_qemu_is_no_proof() -> None:
    assert str(boot(Path("vmlinuz"), program="/nonexistent/qemu")) == "no: /nonexistent/qemu is not installed"


def test_no_device_needs_no_proof(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    assert kvm.known(tmp_path, device) == Proof(False, f"there is no {device}")


def test_the_kernel_of_the_newest_guest_is_at_hand(tmp_path: Path) -> None:
    kernels = [Guest.at(tmp_path / "images" / f"guest-{number}").kernel for number in (1, 2)]
    for moment, kernel in enumerate(reversed(kernels)):
        kernel.parent.mkdir(parents=True)
        kernel.touch()
        os.utime(kernel, (moment, moment))
    assert kernel_at_hand(tmp_path) == kernels[0]


def test_a_verdict_is_kept_until_kernel_or_qemu_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "kvm"
    device.touch()
    verdicts = iter([Proof(True, "a kernel booted"), Proof(False, "a kernel did not boot")])
    monkeypatch.setattr(kvm, "DEVICE", device)
    monkeypatch.setattr(kvm, "boot", lambda *_, **__: next(verdicts))
    monkeypatch.setattr(kvm, "_key", lambda: "6.1 QEMU 7")
    cache = tmp_path / "cache"
    assert kvm.known(cache, device) is None
    assert kvm.prove(cache, Path("vmlinuz")).works
    assert kvm.prove(cache, Path("vmlinuz")).works
    monkeypatch.setattr(kvm, "_key", lambda: "6.12 QEMU 7")
    assert kvm.known(cache, device) is None
    assert not kvm.prove(cache, Path("vmlinuz")).works


def test_a_damaged_record_is_no_verdict(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()
    (tmp_path / "kvm.json").write_text("{")
    assert kvm.known(tmp_path, device) is None


def test_an_emulated_processor_needs_no_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(kvm, "DEVICE", device)
    monkeypatch.setattr(kvm, "is_emulated", lambda: True)
    assert not kvm.prove(tmp_path, Path("vmlinuz"), again=True).works
    assert not (tmp_path / "kvm.json").exists()
