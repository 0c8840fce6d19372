"""An event of a lab: what its journal records, and every screen shows.

It goes out in the envelope of CloudEvents 1.0
(https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md).
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something that happened in a lab.

    id: counts up from 1 within one journal. time: aware, UTC. type: such as `stacklab.step.passed`.
    source: `/stacklab/labs/NAME`. subject: the node, service or check that it is about, or empty.
    data: plain JSON values.
    """

    id: int
    time: datetime
    type: str
    source: str
    subject: str
    data: dict[str, Any]

    def cloudevent(self) -> dict[str, Any]:
        """The event as a CloudEvents 1.0 object, ready for `json.dumps`."""
        # The time is part of the id because a lab that is destroyed and made again counts from 1 again,
        # while source and id together must be unique for ever.
        envelope: dict[str, Any] = {
            "specversion": "1.0",
            "id": f"{self.time:%Y%m%dT%H%M%S.%fZ}-{self.id}",
            "source": self.source,
            "type": self.type,
            "time": rfc3339(self.time),
            # https://github.com/cloudevents/spec/blob/main/cloudevents/extensions/sequence.md
            "sequence": f"{self.id:010}",
        }
        if self.subject:  # the specification wants it absent rather than empty
            envelope["subject"] = self.subject
        return envelope | {"datacontenttype": "application/json", "data": self.data}


def rfc3339(moment: datetime) -> str:
    """An aware time in UTC with microseconds, such as 2025-11-21T02:49:00.123456Z."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
