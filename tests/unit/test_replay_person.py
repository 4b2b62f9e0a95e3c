import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from hone.errors import ConfigError, InvalidEvent, NotEnoughData
from hone.replay.person import Ask, write_script
from hone.replay.recording import Recording, choose, read_recordings, read_row


def row(name: str = "r1", p_b_better: float = 1.0, **fields: Any) -> dict[str, Any]:
    plain = {
        "id": name,
        "prompt": [{"role": "user", "content": "Why is the sky blue?"}],
        "responses": [{"model": None, "text": "Because."}, {"model": "m", "text": "It scatters blue light most."}],
        "preferences": [{"a": 0, "b": 1, "p_b_better": p_b_better, "judge": "human"}],
        "license": "MIT",
    }
    return plain | fields


def recording(name: str = "r1", p_b_better: float = 1.0, **fields: Any) -> Recording:
    return read_row(json.dumps(row(name, p_b_better, **fields)).encode(), "here")


def file_of(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


def test_a_gzipped_file_and_a_plain_one_hold_the_same(tmp_path: Path) -> None:
    plain = file_of(tmp_path / "a.jsonl", json.dumps(row("r1")), "", json.dumps(row("r2")))
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_recordings(plain) == read_recordings(packed)
    assert [r.id for r in read_recordings(plain)] == ["r1", "r2"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param("{", "line 2", id="no JSON"),
        pytest.param(json.dumps(row("r1")), "came before", id="an id twice"),
        pytest.param(json.dumps({**row("r2"), "responses": "x"}), "responses", id="a field of another type"),
        pytest.param(json.dumps({**row("r2"), "prompt": []}), "no message", id="an empty prompt"),
        pytest.param(
            json.dumps({**row("r2"), "preferences": [{"a": 0, "b": 7, "p_b_better": 1}]}),
            "names no answer",
            id="no answer",
        ),
        pytest.param(
            json.dumps({**row("r2"), "preferences": [{"a": 0, "b": 1, "p_b_better": 2}]}), "probability", id="no share"
        ),
    ],
)
def test_a_line_that_is_no_conversation_is_named(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(InvalidEvent, match=words) as caught:
        read_recordings(file_of(tmp_path / "a.jsonl", json.dumps(row("r1")), line))
    assert "line 2" in str(caught.value)


def test_a_file_without_conversations_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotEnoughData):
        read_recordings(file_of(tmp_path / "a.jsonl", ""))


def test_a_broken_gzip_file_is_a_clear_error(tmp_path: Path) -> None:
    broken = tmp_path / "a.jsonl.gz"
    broken.write_bytes(gzip.compress(b"{}" * 500)[:20])
    with pytest.raises(ConfigError, match=r"a\.jsonl\.gz"):
        read_recordings(broken)


def test_a_larger_limit_only_adds() -> None:
    rows = [recording(f"r{n}") for n in range(50)]
    few, many = choose(rows, 10, seed=3), choose(rows, 20, seed=3)
    assert many[:10] == few
    assert choose(rows, 10, seed=4) != few


def test_rows_in_which_nothing_can_be_compared_are_left_out() -> None:
    same = [{"text": "a  b"}, {"text": "a b"}]
    blank = [{"text": "a"}, {"text": " "}]
    rows = [recording("same", responses=same), recording("blank", responses=blank), recording("good")]
    assert [r.id for r in choose(rows, None, seed=0)] == ["good"]


def test_the_same_seed_gives_the_same_people_and_events_and_another_seed_others() -> None:
    one, same, other = (write_script(recording(), seed) for seed in (1, 1, 2))
    assert one == same
    assert one.name != other.name
    assert not {act.event_id for act in one.acts} & {act.event_id for act in other.acts}


def test_every_person_gives_feedback_and_no_event_id_comes_twice() -> None:
    scripts = [write_script(recording(f"r{n}", p_b_better=n % 11 / 10), 0) for n in range(300)]
    assert all(script.acts for script in scripts)
    ids = [act.event_id for script in scripts for act in script.acts]
    assert len(set(ids)) == len(ids)


def test_feedback_speaks_only_of_answers_that_were_given_before() -> None:
    for n in range(200):
        asked = 0
        for step in write_script(recording(f"r{n}", p_b_better=0.5 + n % 2 / 2), 0).steps:
            if isinstance(step, Ask):
                asked += 1
            else:
                assert step.on < asked
                assert step.over is None or step.over < asked


def favours(p_b_better: float) -> float:
    """Share of the comparisons that answer 1 wins."""
    wins = losses = 0
    for n in range(2000):
        script = write_script(recording(f"r{n}", p_b_better), 0)
        asked = [step.answer for step in script.steps if isinstance(step, Ask)]
        for act in script.acts:
            if act.over is not None:
                wins += asked[act.on] == 1
                losses += asked[act.on] == 0
    return wins / (wins + losses)


def test_choices_follow_the_files_judges_with_some_noise() -> None:
    assert 0.75 < favours(1.0) < 0.9
    assert 0.1 < favours(0.0) < 0.25
    assert 0.6 < favours(0.8) < 0.75


def test_where_judges_found_a_tie_nothing_is_compared() -> None:
    for n in range(50):
        script = write_script(recording(f"r{n}", 0.5), 0)
        assert (script.num_asks, [act.kind for act in script.acts]) == (1, ["thumbs"])
