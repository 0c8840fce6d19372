"""What every test shares: its markers follow from its folder, and what is quick runs first."""

import signal
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# Seconds after which a test of each kind is taken for hung; a test's own `timeout` marker goes before.
TIMEOUTS = {"unit": 60, "source": 300, "lab": 1800}
LAST = "test_the_end.py"

# A shell that starts us in the background has us, and all that we start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


def _kind(item: pytest.Item) -> str:
    folder = item.path.relative_to(TESTS).parts[0]
    return folder if folder in ("unit", "lab") else "source"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        kind = _kind(item)
        if kind != "source":
            item.add_marker(kind)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUTS[kind]))
    order = list(TIMEOUTS)
    items.sort(key=lambda item: (order.index(_kind(item)), item.path.name == LAST))
