"""The simulated world without its network, and what the learning benchmark makes of its outcomes."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.learning import DEFAULT, describe, interval, promises
from benchmarks.learning_runs import Chain, Measured, Outcome, rows_of_split
from benchmarks.learning_world import Written, collect, take_turn
from examples.support.corpus import Style, fact_of, write_answer
from examples.support.taste import GUIDED, THOROUGH
from examples.support.users import User, rewrite

QUESTION = "How do I rename my invoice?"
GOOD, BAD = (
    write_answer(fact_of(QUESTION).place, style, random.Random(0))
    for style in (Style(True, True, 0), Style(False, False, 3))
)


def user(**fields: float) -> User:
    plain = {"thumbs_share": 1.0, "compare_share": 0.0, "edit_share": 0.0, "regenerate_share": 1.0, "choice_share": 1.0}
    return User("u-1", GUIDED, 0.0, (QUESTION,), **{**plain, **fields})


def rows(who: User, *given: Written) -> tuple[list[dict[str, object]], Counter[str]]:
    found = collect([who], {(who.id, QUESTION): given}, seed=0)
    return found.rows, found.events


def test_a_disliked_answer_is_asked_again_and_the_choice_makes_a_pair() -> None:
    found, events = rows(user(), Written(BAD, True), Written(GOOD, True))
    assert events["thumbs"] == events["regenerate"] == events["choice"] == 1
    assert [(row["source"], row["chosen"], row["rejected"]) for row in found] == [("choice", GOOD, BAD)]


def test_a_liked_answer_is_not_asked_again() -> None:
    turn = take_turn(user(), QUESTION, [Written(GOOD, True), Written(BAD, True)], random.Random(0), Counter())
    assert len(turn.answers) == 1


def test_a_corrected_answer_beats_its_original() -> None:
    wrong = GOOD.replace("Billing", "Orders")
    found, _ = rows(user(edit_share=1.0), Written(wrong, True), Written(GOOD, True))
    assert [(row["source"], row["rejected"]) for row in found] == [("edit", wrong)]
    assert str(found[0]["chosen"]).endswith("1. Open the Billing page. 2. Press the Edit button.")


def test_answers_that_were_cut_off_make_no_pair() -> None:
    assert rows(user(), Written(BAD, True), Written(GOOD, False))[0] == []


def test_the_oracle_knows_the_order_of_all_answers_and_skips_equal_ones() -> None:
    noisy = replace(user(), noise=1.0)
    found = collect([noisy], {(noisy.id, QUESTION): [Written(GOOD, True), Written(BAD, True)]}, seed=0)
    assert [(row["chosen"], row["rejected"]) for row in found.oracle_rows] == [(GOOD, BAD)]
    same = collect([noisy], {(noisy.id, QUESTION): [Written(GOOD, True), Written(GOOD, True)]}, seed=0)
    assert same.oracle_rows == []


def test_who_likes_length_corrects_into_longer_answers() -> None:
    long = rewrite(replace(user(), taste=THOROUGH), fact_of(QUESTION), random.Random(0))
    assert len(long) > len(rewrite(user(), fact_of(QUESTION), random.Random(0)))


def test_splits_share_no_person_and_lose_none() -> None:
    everyone = [{"user_id": f"u-{k}"} for k in range(200) for _ in range(2)]
    parts = [rows_of_split(everyone, split) for split in ("train", "dev", "test")]
    people = [{row["user_id"] for row in part} for part in parts]
    assert sum(map(len, people)) == len(set.union(*people)) == 200
    assert 120 < len(people[0]) < 160


def outcome(arm: str, seed: int, gains: list[float], correct: list[float] | None = None) -> Outcome:
    """A chain whose every question gains the same, with a little noise that sums to nothing."""
    noise = np.tile([0.01, -0.01], 80)
    chain = Chain(arm, "guided", seed, len(gains), 50, 0.18, 0)  # type: ignore[arg-type]
    correct = correct or [0.8] * (len(gains) + 1)
    models = [
        Measured(1.0 + gain + noise * (k + 1), np.full(160, correct[k]), 100.0) for k, gain in enumerate([0.0, *gains])
    ]
    return Outcome(chain, models, [500] * len(gains), [200] * len(gains), [{}] * len(gains), 1.0)


BAD_CAUGHT = {"is_bad": True, "verdict": "fail", "failed": ["forgetting"], "inconclusive": []}


def test_gains_are_compared_with_the_oracles_and_counted_for_events() -> None:
    found = describe(
        [outcome("dpo", 0, [0.3, 0.6]), outcome("dpo", 1, [0.5, 0.8])]
        + [outcome("oracle", k, [0.5, 1.0]) for k in (0, 1)],
        [BAD_CAUGHT],
    )
    assert found["gain_over_oracle"] == pytest.approx(0.7)
    family = found["families"]["guided"]
    assert family["gain_by_round"] == pytest.approx([0.4, 0.7])
    assert family["gain_per_1000_events"] == pytest.approx(0.7)
    assert family["lowest_gain"] == pytest.approx(0.6)
    assert found["rounds_significantly_down"] == 0


def test_a_round_that_makes_answers_worse_and_a_bad_recipe_that_passes_break_promises() -> None:
    chains = [outcome("dpo", k, [0.5, 0.2 + k / 10], [0.8, 0.8, 0.7]) for k in (0, 1)]
    found = describe([*chains, outcome("oracle", 0, [0.5, 0.6])], [BAD_CAUGHT, {**BAD_CAUGHT, "verdict": "pass"}])
    assert found["rounds_significantly_down"] == 2
    assert found["correctness_drop"]["mean"] == pytest.approx(0.1)
    holds = {name: target.as_dict()["holds"] for name, target in promises(found).items()}
    assert not any(holds[name] for name in ("rounds_significantly_down", "correctness_drop_high", "bad_recipe_caught"))


def test_an_interval_is_students_and_unknown_for_one_value() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert (found["low"], found["high"]) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3)
    assert np.isnan(interval([1.0])["low"])


def test_the_plan_has_both_arms_for_each_seed_and_family_and_the_others_once() -> None:
    chains = DEFAULT.chains()
    counts = Counter((chain.arm, chain.num_rounds) for chain in chains)
    assert counts == {("dpo", 3): 10, ("oracle", 3): 10, ("kto", 1): 2, ("ppo", 1): 2, ("rloo", 1): 2}
    assert sum(trial.is_bad for trial in DEFAULT.trials()) == 5
