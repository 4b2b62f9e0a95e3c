"""Answers generated in batches: the same as alone, ended where they shall end."""

from collections.abc import Callable, Sequence

import pytest
import torch

from serving.runtime.generation import Row, Running, Sampler, Sampling, generate, overlap
from serving.runtime.model import LoadedModel, load_model
from tests.support.tiny_model import make_tiny_model

PROMPTS = ["How do I share my order?", "Happy to help!", "How do I delete my password? Open the Security page.", "x"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    torch.set_num_threads(1)
    return load_model("tiny", make_tiny_model(tmp_path_factory.mktemp("tiny")))


def rows(loaded: LoadedModel, sampling: Callable[[int], Sampling], streams: bool = False) -> list[Row]:
    prompts = [loaded.prompt_ids([{"role": "user", "content": text}]) for text in PROMPTS]
    return [Row(prompt, sampling(i), loaded.decode, streams) for i, prompt in enumerate(prompts)]


def run(loaded: LoadedModel, batch: Sequence[Row], emit: Callable[[Sequence[Row]], None] = lambda _: None) -> None:
    generate(loaded.model, batch, pad=loaded.pad, ends=loaded.ends, emit=emit)


def test_greedy_answers_equal_those_of_transformers_own_generate(loaded: LoadedModel) -> None:
    batch = rows(loaded, lambda i: Sampling(max_tokens=12 + 5 * i, temperature=0))
    run(loaded, batch)
    for row in batch:
        expected = loaded.model.generate(
            torch.tensor([row.prompt_ids]), max_new_tokens=row.sampling.max_tokens, do_sample=False
        )[0, len(row.prompt_ids) :].tolist()
        assert row.ids == [token for token in expected if token not in loaded.ends]
        assert row.finish_reason == ("length" if len(row.ids) == row.sampling.max_tokens else "stop")


def test_a_seeded_answer_does_not_depend_on_its_neighbours(loaded: LoadedModel) -> None:
    batch = rows(loaded, lambda i: Sampling(max_tokens=20, temperature=0.8, top_p=0.9, seed=i))
    run(loaded, batch)
    for i, row in enumerate(batch):
        alone = rows(loaded, lambda _, i=i: Sampling(max_tokens=20, temperature=0.8, top_p=0.9, seed=i))[i]
        run(loaded, [alone])
        assert alone.ids == row.ids


def test_the_pieces_of_a_stream_add_up_to_the_whole_answer(loaded: LoadedModel) -> None:
    batch, pieces = rows(loaded, lambda i: Sampling(max_tokens=30, seed=i), streams=True), dict[Row, list[str]]()
    run(loaded, batch, lambda live: [pieces.setdefault(row, []).append(row.take()) for row in live])
    for row in batch:
        assert "".join(pieces[row]) == row.text == loaded.decode(row.ids)
        assert len(pieces[row]) > 1


def test_an_answer_ends_before_its_stop_string_and_a_stream_never_shows_part_of_it(loaded: LoadedModel) -> None:
    (free, *_) = rows(loaded, lambda _: Sampling(max_tokens=30, seed=5))
    run(loaded, [free])
    stop = free.text[6:9]
    (row, *_) = rows(loaded, lambda _: Sampling(max_tokens=30, seed=5, stop=(stop,)), streams=True)
    shown: list[str] = []
    run(loaded, [row], lambda live: shown.append(live[0].take()))
    assert row.finish_reason == "stop"
    assert "".join(shown) == row.text == free.text[: free.text.index(stop)]


def test_a_cancelled_row_leaves_the_batch_and_the_others_go_on(loaded: LoadedModel) -> None:
    batch = rows(loaded, lambda i: Sampling(max_tokens=25, seed=i))

    def cancel(live: Sequence[Row]) -> None:
        batch[1].cancelled = len(batch[0].ids) >= 3

    run(loaded, batch, cancel)
    assert len(batch[1].ids) <= 4
    assert all(row.finish_reason for row in (batch[0], batch[2], batch[3]))


def test_tokens_are_drawn_as_often_as_their_probabilities_say() -> None:
    draws = 4000
    tally = torch.zeros(4)
    row = Row([1], Sampling(max_tokens=1, temperature=2.0, top_p=0.95, seed=3), str)
    sampler = Sampler([row], torch.device("cpu"))
    probabilities = torch.tensor([0.5, 0.3, 0.17, 0.03])
    for _ in range(draws):
        tally[int(sampler.draw(2.0 * probabilities.log()[None])[0])] += 1
    kept = torch.tensor([0.5, 0.3, 0.17, 0.0]) / 0.97
    assert tally[3] == 0
    assert torch.allclose(tally / draws, kept, atol=0.03)


@pytest.mark.parametrize(("text", "length"), [("abc", 0), ("xST", 2), ("xSTOP", 4), ("", 0), ("S", 1)])
def test_the_part_of_a_text_that_may_begin_a_stop_string_is_found(text: str, length: int) -> None:
    assert overlap(text, "STOP") == length


def test_scores_and_embeddings_do_not_depend_on_the_batch(loaded: LoadedModel) -> None:
    items = [
        ([{"role": "user", "content": text}], answer)
        for text, answer in zip(PROMPTS, ["Open it", "a", "b c", "no"], strict=True)
    ]
    together = loaded.score(items)
    assert together == pytest.approx([loaded.score([item])[0] for item in items], abs=1e-4)
    assert all(score < 0 for score in together)
    embedded = loaded.embed(PROMPTS)
    assert embedded[2] == pytest.approx(loaded.embed(PROMPTS[2:3])[0], abs=1e-4)


def test_the_score_is_the_mean_log_probability_of_the_completion(loaded: LoadedModel) -> None:
    messages, text = [{"role": "user", "content": PROMPTS[0]}], "Open the page"
    prompt = loaded.prompt_ids(messages)
    answer = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logits = loaded.model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    expected = sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)) / len(answer)
    assert loaded.score([(messages, text)]) == pytest.approx([expected], abs=1e-4)


@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_row_that_joins_a_running_batch_gets_the_answer_that_it_would_get_alone(
    loaded: LoadedModel, after: int
) -> None:
    def sampling(i: int) -> Sampling:
        return Sampling(max_tokens=14 + 6 * i, temperature=0.8, seed=i)

    batch = rows(loaded, sampling)
    running = Running(loaded.model, pad=loaded.pad, ends=loaded.ends, emit=lambda _: None)
    for row in batch:
        running.admit([row])
        for _ in range(after):
            if running.rows:
                running.step()
    assert running.takes_more()
    while running.rows:
        running.step()
    for i, row in enumerate(batch):
        alone = rows(loaded, sampling)[i]
        run(loaded, [alone])
        assert row.ids == alone.ids


def test_columns_that_only_pad_are_dropped_once_the_long_row_left(loaded: LoadedModel) -> None:
    long, short = rows(loaded, lambda i: Sampling(max_tokens=(40, 60)[i % 2], temperature=0))[:2]
    long.prompt_ids = long.prompt_ids * 8
    running = Running(loaded.model, pad=loaded.pad, ends=frozenset(), emit=lambda _: None)
    running.admit([long, short])
    while running.rows:
        running.step()
        if len(running.rows) == 1:
            assert running.width() < 1.34 * (len(short.prompt_ids) + len(short.ids)) + 1
    alone = rows(loaded, lambda _: Sampling(max_tokens=60, temperature=0))[1]
    generate(loaded.model, [alone], pad=loaded.pad, ends=frozenset(), emit=lambda _: None)
    assert short.ids == alone.ids
