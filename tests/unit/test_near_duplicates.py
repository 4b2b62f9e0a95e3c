"""Which texts count as one."""

import pytest

from hone.near_duplicates import group, jaccard, normalise, overlapping, shingles


def test_case_blanks_and_signs_do_not_make_a_text_new() -> None:
    assert normalise("  How do I — RENAME it?! ") == normalise("how do i rename it")


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        pytest.param("How do I rename my invoice?", "how do I rename my invoice", True, id="only form differs"),
        pytest.param(
            "Please explain how the refund of a cancelled order works in detail",
            "Please explain how the refund of a canceled order works in detail!",
            True,
            id="one letter differs",
        ),
        pytest.param("How do I rename my invoice?", "How do I rename my order?", False, id="another object"),
        pytest.param("", "a", False, id="an empty text is like no other"),
        pytest.param("ok", "ok!", True, id="shorter than one gram"),
    ],
)
def test_two_texts_are_grouped_when_most_of_their_grams_agree(a: str, b: str, same: bool) -> None:
    first, second = group([a, b])
    assert (first == second) is same


def test_a_chain_of_near_duplicates_is_one_group() -> None:
    words = [f"word{number} is part of this long sentence number {number}" for number in range(40)]
    text = " ".join(words)
    chain = [text, text.replace("word1 ", "other "), text.replace("word1 ", "other ").replace("word20 ", "other ")]
    assert len(set(group(chain))) == 1


def test_every_pair_above_the_threshold_is_found_among_many_texts() -> None:
    """Against the slow way, which compares all with all."""
    texts = [
        f"please tell me about subject {k % 60} and about topic {k * k % 47} of chapter {k % 7}" for k in range(150)
    ]
    groups = group(texts, threshold=0.75)
    sets = [shingles(normalise(text)) for text in texts]
    slow = [(a, b) for a in range(150) for b in range(a) if jaccard(sets[a], sets[b]) >= 0.75]
    assert len(slow) > 20
    assert all(groups[a] == groups[b] for a, b in slow)
    assert len(set(groups)) > 1


def test_overlap_is_found_through_case_and_small_changes() -> None:
    seen = ["How can I restore the whole archive of last year?"]
    assert overlapping(["HOW CAN I RESTORE THE WHOLE ARCHIVE OF LAST YEAR", "Where is my parcel?"], seen) == [
        True,
        False,
    ]
