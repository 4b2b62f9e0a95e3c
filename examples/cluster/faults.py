"""What goes wrong between a program and the API server, on request."""

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum


class Fault(StrEnum):
    """One answer that is not as it should be."""

    STALE_READ = "stale_read"
    "The read returns the object as it was before its last change."
    CONFLICT = "conflict"
    "409: nothing is done."
    ERROR = "error"
    "500: nothing is done."
    LOST_ANSWER = "lost_answer"
    "The request is carried out; its answer never arrives."
    NO_ANSWER = "no_answer"
    "The request never arrives."


WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass
class Faults:
    """Faults that wait for their request, and conditions that last until they are switched off."""

    waiting: deque[tuple[Fault, frozenset[str]]] = field(default_factory=deque)
    away: bool = False
    "The API server does not answer."
    forgets: bool = False
    "Changes are accepted, answered as made, and not stored."
    ineffective: bool = False
    "Edits of a split are stored, and do not reach the data plane (SeldonIO/seldon-core#5181); creation does."

    def add(self, *faults: Fault, methods: frozenset[str] | None = None) -> None:
        """Let each of these meet the next request of its kind, in order."""
        for fault in faults:
            default = frozenset({"GET"}) if fault is Fault.STALE_READ else WRITES
            self.waiting.append((fault, methods or default))

    def take(self, method: str) -> Fault | None:
        """Return the fault that this request meets, if one waits for it."""
        if self.away:
            return Fault.NO_ANSWER
        if self.waiting and method in self.waiting[0][1]:
            return self.waiting.popleft()[0]
        return None
