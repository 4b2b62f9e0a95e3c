"""Compares challenger and champion and returns the numbers that the gates judge; verdicts are not given here.

People's pairs judge; where the challenger was trained on other data, prompts near its training prompts are left out.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hone.datasets import prompt_text
from hone.errors import ConfigError, NotEnoughData
from hone.near_duplicates import group, normalise, overlapping, text_key
from hone.records import Message
from training.bootstrap import Floats, ratio
from training.generate import Answer, Decoding, generate
from training.judge import CrossFitted, Preference, clustered, wins
from training.pairs import Row, encode_pairs, read_rows
from training.policy import answer_logps, on_device
from training.progress import Progress
from training.spec import Evaluation, Job

Chat = list[dict[str, str]]
Measured = dict[str, dict[str, float]]

HELD_OUT = ("test", "dev")
"""Both measure, unless dev chose the checkpoint or the spec."""
EQUAL_LENGTH = 0.1
"""Largest difference of log lengths of two answers that count as equally long."""
SCORING_BATCH = 32


@dataclass(frozen=True, slots=True)
class Check:
    """A prompt whose right answer contains certain strings, and none of certain others."""

    prompt: Chat
    must_contain: tuple[str, ...]
    must_not_contain: tuple[str, ...] = ()

    def passes(self, answer: Answer) -> bool:
        """Say whether the answer is right and whole: one that was cut off is not."""
        found = all(text in answer.text for text in self.must_contain)
        return found and answer.ended and not any(text in answer.text for text in self.must_not_contain)


@dataclass(frozen=True, slots=True)
class Exam:
    """What both models are asked, and the people's pairs that judge them."""

    people: list[Row]
    held_out: list[Row]
    "Those of them that no method trains on or chooses by."
    prompts: list[Chat]
    "Held-out prompts, answered `num_samples` times each."
    checks: list[Check]
    "Answered once, greedily."


@dataclass(frozen=True, slots=True)
class Contender:
    """One model and what it wrote."""

    model: Any
    tokenizer: Any
    samples: list[list[Answer]]
    "For each prompt of the exam its answers."
    greedy: list[Answer]


def evaluate(job: Job, challenger: tuple[Any, Any], champion: tuple[Any, Any], progress: Progress) -> Measured:
    """Return gate name -> measurements; what could not be measured is absent. Writes `answers.jsonl` for people."""
    exam = read_exam(job)
    settings = job.spec.evaluation
    ours = sit_exam(*challenger, exam, job, progress, "challenger")
    theirs = sit_exam(*champion, exam, job, progress, "champion")
    write_answers(job.directory / "answers.jsonl", exam, ours, theirs)
    progress.stage("judge")
    win_rate, equal_length = measure_win_rate(exam, ours, theirs, settings)
    return {
        "held_out_preference": measure_preference(exam.held_out, ours, theirs, job),
        "win_rate": win_rate,
        "forgetting": measure_forgetting(exam.checks, ours, theirs, settings),
        "degenerate": measure_degenerate(exam, ours, theirs, settings) | equal_length,
    }


def read_exam(job: Job) -> Exam:
    """Return what is asked: held-out prompts of people first, then the operator's own."""
    trained = [text_of(row["prompt"]) for row in read_rows(job.directory / "data" / "train.jsonl")]
    rows = {split: read_split(job.evaluation_data, split) for split in ("train", "dev", "test")}
    is_chosen_by_dev = job.spec.evaluation.test_only or job.spec.stop.patience is not None
    splits = HELD_OUT[:1] if is_chosen_by_dev else HELD_OUT
    held_out = {split: without_overlap(rows[split], trained) for split in splits}
    golden, general = read_checks(job.golden_tests), read_checks(job.general_prompts)
    prompts = [row["prompt"] for split in splits for row in held_out[split]]
    prompts += [check.prompt for check in golden]
    unique = list({text_key(text_of(prompt)): prompt for prompt in prompts}.values())
    return Exam(
        people=[row for split in rows.values() for row in split],
        held_out=[row for split in splits for row in held_out[split]],
        prompts=unique[: job.spec.evaluation.num_prompts],
        checks=golden + general,
    )


def read_split(directory: Path | None, split: str) -> list[Row]:
    """Return the rows of one split of the people's pairs."""
    return read_rows(directory / f"{split}.jsonl") if directory else []


def without_overlap(rows: list[Row], trained: Sequence[str]) -> list[Row]:
    """Return the rows whose prompts are no near-duplicates of prompts that were trained on."""
    seen = overlapping([text_of(row["prompt"]) for row in rows], trained)
    return [row for row, is_seen in zip(rows, seen, strict=True) if not is_seen]


def read_checks(path: Path | None) -> list[Check]:
    """Return the checks of an operator's JSONL file: {prompt, must_contain} and, if wanted, {must_not_contain}.

    Raises:
        ConfigError: the file is missing, or a line is no check.
    """
    if path is None:
        return []
    if not path.exists():
        raise ConfigError(f"{path} is missing: correct training.golden_tests or training.general_prompts")
    checks = []
    for number, row in enumerate(read_rows(path), 1):
        try:
            chat = [{"role": "user", "content": row["prompt"]}] if isinstance(row["prompt"], str) else row["prompt"]
            checks.append(Check(list(chat), tuple(row["must_contain"]), tuple(row.get("must_not_contain", ()))))
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{path} line {number} is no {{prompt, must_contain}} ({error!r})") from None
    return checks


def text_of(prompt: Iterable[dict[str, str]]) -> str:
    """Return what near-duplicates are found by."""
    return prompt_text([Message(role=message["role"], content=message["content"]) for message in prompt])


def sit_exam(model: Any, tokenizer: Any, exam: Exam, job: Job, progress: Progress, name: str) -> Contender:
    """Let one model answer everything."""
    settings = job.spec.evaluation
    limits = {"max_new_tokens": settings.max_new_tokens, "batch_size": settings.batch_size, "seed": job.spec.seed}
    repeated = [prompt for prompt in exam.prompts for _ in range(settings.num_samples)]
    asked = [check.prompt for check in exam.checks]
    with on_device(model):
        progress.stage(f"{name} answers")
        sampled = generate(model, tokenizer, repeated, Decoding(temperature=settings.temperature, **limits), progress)
        progress.stage(f"{name} checks")
        greedy = generate(model, tokenizer, asked, Decoding(temperature=0.0, **limits), progress)
    size = settings.num_samples
    samples = [sampled[at : at + size] for at in range(0, len(sampled), size)]
    return Contender(model, tokenizer, samples, greedy)


def measure_preference(held_out: list[Row], challenger: Contender, champion: Contender, job: Job) -> dict[str, float]:
    """Return how often the challenger's implicit reward (arXiv:2305.18290, section 4) ranks a pair as people did.

    Pairs count by their weight; the interval is clustered by person.
    """
    try:
        pairs, _ = encode_pairs(held_out, challenger.tokenizer, job.spec.max_length)
    except NotEnoughData:
        return {"num_pairs": 0}
    if not pairs:
        return {"num_pairs": 0}
    gaps = [
        answer_gaps(
            contender.model, [(p.prompt, p.chosen, p.rejected) for p in pairs], challenger.tokenizer.pad_token_id
        )
        for contender in (challenger, champion)
    ]
    hits: dict[str, list[float]] = {}
    totals: dict[str, float] = {}
    for pair, gap in zip(pairs, gaps[0] - gaps[1], strict=True):
        person = str(pair.row["user_id"])
        hits.setdefault(person, []).append(wins(gap) * pair.weight)
        totals[person] = totals.get(person, 0.0) + pair.weight
    interval = clustered(hits, totals, job.spec.evaluation.bootstrap)
    return {"num_pairs": len(pairs), "num_people": len(totals), **interval.measurements("accuracy")}


@torch.inference_mode()
def answer_gaps(model: Any, pairs: Sequence[tuple[Any, Any, Any]], pad: int) -> Floats:
    """Return log-probability of chosen minus rejected, one number a pair."""
    gaps: list[float] = []
    with on_device(model):
        for at in range(0, len(pairs), SCORING_BATCH):
            chunk = pairs[at : at + SCORING_BATCH]
            sequences = [(prompt, chosen) for prompt, chosen, _ in chunk] + [(prompt, no) for prompt, _, no in chunk]
            chosen_B, rejected_B = answer_logps(model, sequences, pad).chunk(2)
            gaps += (chosen_B - rejected_B).tolist()
    return np.array(gaps)


def measure_win_rate(
    exam: Exam, challenger: Contender, champion: Contender, settings: Evaluation
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the share of (challenger, champion) answer pairs that the cross-fitted judge decides for the challenger.

    Every answer meets every one to the same prompt; intervals are clustered by prompt. The second part is the same
    among answers of equal length only.
    """
    keys, judges = fit_judges(exam, settings)
    rows = []
    for key, ours, theirs in zip(keys, challenger.samples, champion.samples, strict=True):
        judge = judges.judge_for(key) if judges else None
        if judge:
            scores = judge.scores([answer.text for answer in (*ours, *theirs)])
            rows.append(compare(scores, [len(answer.text) for answer in (*ours, *theirs)]))
    accuracy = judges.accuracy(settings.bootstrap) if judges else None
    measured = {"num_prompts": float(len(rows)), "num_answers": float(len(rows) * settings.num_samples)}
    if not rows or accuracy is None:
        return measured, {}
    won, num, won_equal, num_equal = np.array(rows).T
    measured |= ratio(won, num, settings.bootstrap).measurements("win_rate")
    measured |= accuracy.measurements("judge_accuracy")
    if not num_equal.sum():
        return measured, {}
    equal = ratio(won_equal, num_equal, settings.bootstrap)
    return measured, equal.measurements("equal_length_win_rate")


def fit_judges(exam: Exam, settings: Evaluation) -> tuple[list[str], CrossFitted | None]:
    """Return the group of each prompt of the exam, and the judges; near-duplicate prompts are one group."""
    texts = [text_of(row["prompt"]) for row in exam.people] + [text_of(prompt) for prompt in exam.prompts]
    keys = [str(number) for number in group(texts)]
    preferences = [
        Preference(str(row["user_id"]), key, row["chosen"], row["rejected"], row["weight"])
        for row, key in zip(exam.people, keys, strict=False)
    ]
    return keys[len(exam.people) :], CrossFitted(preferences, settings.num_folds) if preferences else None


def compare(scores: Floats, lengths: Sequence[int]) -> tuple[float, float, float, float]:
    """Return wins and comparisons of the first half of the answers against the second: all, and of equal length."""
    half = len(scores) // 2
    won = np.sign(scores[:half, None] - scores[None, half:]) / 2 + 0.5
    sizes = np.log1p(np.array(lengths, dtype=float))
    is_equal = np.abs(sizes[:half, None] - sizes[None, half:]) <= EQUAL_LENGTH
    return float(won.sum()), float(won.size), float(won[is_equal].sum()), float(is_equal.sum())


def measure_forgetting(
    checks: list[Check], challenger: Contender, champion: Contender, settings: Evaluation
) -> dict[str, float]:
    """Return both pass rates and the paired change, with its interval over checks."""
    if not checks:
        return {"num_checks": 0}
    ours, theirs = (
        np.array([check.passes(answer) for check, answer in zip(checks, who.greedy, strict=True)], dtype=float)
        for who in (challenger, champion)
    )
    change = ratio(ours - theirs, np.ones(len(checks)), settings.bootstrap)
    rates = {"challenger": float(ours.mean()), "champion": float(theirs.mean())}
    return {"num_checks": float(len(checks)), **rates, **change.measurements("change")}


def measure_degenerate(
    exam: Exam, challenger: Contender, champion: Contender, settings: Evaluation
) -> dict[str, float]:
    """Return end rate, length, variety and repetition of both models' sampled answers."""
    num_answers = float(sum(len(answers) for answers in challenger.samples))
    if not num_answers:
        return {"num_answers": 0}
    measured = {"num_answers": num_answers, "num_prompts": float(len(exam.prompts))}
    repeats = []
    for prefix, who in (("", challenger), ("champion_", champion)):
        answers = [answer for group_ in who.samples for answer in group_]
        repeats.append(repeated_share(who.samples))
        measured |= {
            f"{prefix}end_rate": float(np.mean([answer.ended for answer in answers])),
            f"{prefix}length": float(np.mean([len(answer.text) for answer in answers])),
            f"{prefix}distinct_2": float(np.mean([distinct_2(answer.text) for answer in answers])),
            f"{prefix}repeat_share": float(repeats[-1].mean()),
        }
    excess = ratio(repeats[0] - repeats[1], np.ones(len(repeats[0])), settings.bootstrap)
    return measured | excess.measurements("repeat_excess")


def distinct_2(text: str) -> float:
    """Return the share of distinct ones among the pairs of neighbouring words; 1 without any pair."""
    words = text.split()
    pairs = list(pairwise(words))
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def repeated_share(samples: list[list[Answer]]) -> Floats:
    """Return for each prompt which share of its answers is the one that the model gives to the most prompts."""
    keys = [[normalise(answer.text) for answer in answers] for answers in samples]
    prompts_of: dict[str, int] = {}
    for answers in keys:
        for key in set(answers):
            prompts_of[key] = prompts_of.get(key, 0) + 1
    most_frequent = max(sorted(prompts_of), key=lambda key: prompts_of[key])
    return np.array([float(np.mean([key == most_frequent for key in answers])) for answers in keys])


def write_answers(path: Path, exam: Exam, challenger: Contender, champion: Contender) -> None:
    """Write what both models answered, a line a prompt, for people to read."""
    with path.open("w", encoding="utf-8") as file:
        for prompt, ours, theirs in zip(exam.prompts, challenger.samples, champion.samples, strict=True):
            texts = {"challenger": [answer.text for answer in ours], "champion": [answer.text for answer in theirs]}
            file.write(json.dumps({"prompt": prompt, **texts}, ensure_ascii=False) + "\n")
        for check, our, their in zip(exam.checks, challenger.greedy, champion.greedy, strict=True):
            verdicts = {"challenger_passes": check.passes(our), "champion_passes": check.passes(their)}
            line = {"prompt": check.prompt, "challenger": [our.text], "champion": [their.text], **verdicts}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
