"""How much of a text an edit changed, in words, and whether that is a preference."""

from collections.abc import Sequence

from hone.settings import Pairs

UNCHANGED, TOO_FAR = "unchanged", "too_far"


def edit_fault(before: str, after: str, policy: Pairs) -> str | None:
    """Return why an edit does not say that its text is the better one, or None where it does."""
    share = edit_share(before, after)
    if share == 0 or share < policy.edit_min_distance:
        return UNCHANGED
    return TOO_FAR if share > policy.edit_max_distance else None


def edit_share(before: str, after: str) -> float:
    """Return the Levenshtein distance in words over the longer text's words: 0 the same, 1 nothing in common."""
    old, new = before.split(), after.split()
    longest = max(len(old), len(new))
    return word_distance(old, new) / longest if longest else 0.0


def word_distance(old: Sequence[str], new: Sequence[str]) -> int:
    """Return how many words must be put in, taken out or replaced to make `new` out of `old`.

    One column of the table for each word, as bits of one integer: Hyyrö, A bit-vector algorithm for computing
    Levenshtein and Damerau edit distances, 2003, figure 8.
    """
    if not old:
        return len(new)
    occurrences: dict[str, int] = {}
    for index, word in enumerate(old):
        occurrences[word] = occurrences.get(word, 0) | 1 << index
    mask, last = (1 << len(old)) - 1, 1 << len(old) - 1
    rises, falls, distance = mask, 0, len(old)
    for word in new:
        match = occurrences.get(word, 0)
        diagonal = (((match & rises) + rises) ^ rises) | match | falls
        right_rises = falls | ~(diagonal | rises) & mask
        right_falls = rises & diagonal
        distance += bool(right_rises & last) - bool(right_falls & last)
        right_rises = right_rises << 1 | 1
        right_falls <<= 1
        rises = (right_falls | ~(diagonal | right_rises)) & mask
        falls = right_rises & diagonal & mask
    return distance
