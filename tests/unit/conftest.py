"""Unit tests do not depend on whether the machine has KVM, nor boot a kernel to see."""

import pytest

from stacklab.host import kvm


@pytest.fixture(autouse=True)
def no_kernel_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "kernel_at_hand", lambda _cache: None)
