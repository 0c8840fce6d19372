"""A release: one OpenStack release on one distribution suite."""

from typing import Literal

from stacklab.model.schema import Name, Root, Word


class Release(Root):
    """Which packages a lab is built from; the mirror is the host's own."""

    distribution: Literal["debian"]
    suite: Name
    components: tuple[Word, ...]
    pockets: tuple[Word, ...]
