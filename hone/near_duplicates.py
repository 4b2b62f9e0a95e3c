"""Groups texts that say nearly the same: MinHash over character 5-grams finds candidates, exact Jaccard decides.

MinHash: Broder, "On the resemblance and containment of documents" (1997). The permutations are fixed, so equal texts
give equal groups in every process.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

from hone.canonical import sha256_hex

Hashes = npt.NDArray[np.uint64]

NGRAM = 5
NUM_BANDS = 21
ROWS_PER_BAND = 3
"""A pair of Jaccard similarity 0.75 meets in at least one band with probability 1 - (1 - 0.75³)²¹ > 0.9999."""
ESTIMATE_SLACK = 0.2
"""Candidates whose estimate is this far below the threshold (over 3 standard errors) are not compared exactly."""


def normalise(text: str) -> str:
    """Return the letters and digits of the text, case folded, in NFKC form: what must be equal for equal prompts."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


def text_key(text: str) -> str:
    """Return the exact-duplicate key of a text: 24 hex digits."""
    return sha256_hex(normalise(text))[:24]


def group(texts: Sequence[str], *, threshold: float = 0.75) -> list[int]:
    """Return a group number for each text; texts joined by a chain of near-duplicates share one.

    Args:
        texts: any strings; only letters and digits count.
        threshold: Jaccard similarity of the 5-gram sets, 0 to 1, from which two texts are near-duplicates.
    """
    normalised = [normalise(text) for text in texts]
    unique = list(dict.fromkeys(normalised))
    parent = list(range(len(unique)))
    for a, b in similar_pairs([shingles(text) for text in unique], threshold):
        parent[max(find(parent, a), find(parent, b))] = min(find(parent, a), find(parent, b))
    number = {text: find(parent, k) for k, text in enumerate(unique)}
    return [number[text] for text in normalised]


def overlapping(texts: Sequence[str], others: Sequence[str], *, threshold: float = 0.75) -> list[bool]:
    """Say for each text whether it equals, or is linked by near-duplicates to, one of `others`."""
    groups = group([*others, *texts], threshold=threshold)
    taken = set(groups[: len(others)])
    return [number in taken for number in groups[len(others) :]]


def find(parent: list[int], k: int) -> int:
    """Return the root of `k`, halving the path on the way."""
    while parent[k] != k:
        parent[k] = parent[parent[k]]
        k = parent[k]
    return k


def shingles(text: str) -> Hashes:
    """Return the sorted hashes of the text's distinct 5-grams; a shorter text is one gram."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    if len(codes) < NGRAM:
        codes = np.pad(codes, (0, NGRAM - len(codes)))
    windows = np.lib.stride_tricks.sliding_window_view(codes, NGRAM)
    powers = np.array([0x9E3779B1**k % 2**64 for k in range(NGRAM)], dtype=np.uint64)
    return np.unique(mix((windows * powers).sum(axis=1, dtype=np.uint64)))


def mix(x: Hashes) -> Hashes:
    """Return the values scrambled (the finaliser of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def signature(grams: Hashes) -> Hashes:
    """Return the MinHash signature of a set of grams, shape (bands * rows,)."""
    rng = np.random.default_rng(0)
    salts = rng.integers(0, 2**63, size=(NUM_BANDS * ROWS_PER_BAND, 1), dtype=np.uint64)
    smallest: Hashes = mix(grams[None, :] ^ salts).min(axis=1)
    return smallest


def similar_pairs(sets: Sequence[Hashes], threshold: float) -> Iterator[tuple[int, int]]:
    """Yield the pairs (a < b) whose Jaccard similarity is at least `threshold`, found through shared bands."""
    if not sets:
        return
    signatures = np.stack([signature(grams) for grams in sets])
    for a, b in sorted(candidates(signatures)):
        estimate = float((signatures[a] == signatures[b]).mean())
        if estimate >= threshold - ESTIMATE_SLACK and jaccard(sets[a], sets[b]) >= threshold:
            yield a, b


def candidates(signatures: Hashes) -> set[tuple[int, int]]:
    """Return the pairs that agree on all rows of at least one band."""
    found: set[tuple[int, int]] = set()
    for band in range(NUM_BANDS):
        buckets: dict[bytes, list[int]] = {}
        for k, row in enumerate(signatures[:, band * ROWS_PER_BAND : (band + 1) * ROWS_PER_BAND]):
            buckets.setdefault(row.tobytes(), []).append(k)
        for members in buckets.values():
            found.update(combinations(members, 2))
    return found


def jaccard(a: Hashes, b: Hashes) -> float:
    """Return the share of common elements of two sorted sets."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)
