"""Which answers a base would not have given: those of another base, and those of many generations ago. Pure.

A preference between answers that the policy itself would not write teaches it less than one between its own
(arXiv:2405.08448). Such rows are marked, never deleted; settings say how much they count.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Reason = Literal["other_base", "old_generation"]
Action = Literal["keep", "weight", "exclude"]

MAX_GENERATIONS = 3
"""Models before the base whose answers count as its own, where nothing else is said. A judgement, not a measurement."""


@dataclass(frozen=True, slots=True)
class Family:
    """The version that a training starts from, and every known version's parent; None: it was imported."""

    base: str
    parents: Mapping[str, str | None]

    def reason(self, versions: frozenset[str], max_generations: int) -> Reason | None:
        """Return why answers of these versions are off-policy for the base, the worst reason first, or None.

        Args:
            max_generations: how many models before the base may have answered; one that left the base's line counts
                as old as the last model that they have in common.
        """
        ages = [self.age(version) for version in versions]
        if None in ages:
            return "other_base"
        return "old_generation" if any(age is not None and age > max_generations for age in ages) else None

    def age(self, version: str) -> int | None:
        """Return how many generations before the base the version belongs to; None: it goes back to another base."""
        line = self.line(self.base)
        return next((line.index(one) for one in self.line(version) if one in line), None)

    def line(self, version: str) -> list[str]:
        """Return the version and those that it was trained from, back to what was imported."""
        found: list[str] = []
        one: str | None = version
        while one is not None and one not in found:
            found.append(one)
            one = self.parents.get(one)
        return found
