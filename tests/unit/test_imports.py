"""Other people's formats: what each row becomes, and what is wrong with a bad one."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from hone.errors import ConfigError
from hone.imports import Imported, Options, read_file
from hone.records import Message

USER, BOT = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}
SYSTEM = {"role": "system", "content": "Be kind."}
ASKED = (Message("user", "Hi?"),)


def read(path: Path, *rows: Any, **options: Any) -> Imported:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return read_file(path, "test", Options(**options))


DEMONSTRATIONS = [
    ("alpaca", {"instruction": "Hi?", "output": "Hello."}, ASKED),
    ("alpaca", {"instruction": "Hi?", "input": "A. B.", "output": "Hello."}, (Message("user", "Hi?\n\nA. B."),)),
    ("chatml", {"messages": [SYSTEM, USER, BOT]}, (Message("system", "Be kind."), *ASKED)),
    ("chatml", {"text": "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"}, ASKED),
    ("sharegpt", {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]}, ASKED),
    ("trl", {"prompt": "Hi?", "completion": "Hello."}, ASKED),
    ("trl", {"prompt": [USER], "completion": [BOT]}, ASKED),
    ("trl", {"prompt": "Hi?", "response": "Hello."}, ASKED),
]


@pytest.mark.parametrize(("form", "row", "prompt"), DEMONSTRATIONS)
def test_demonstrations_of_every_format(form: str, row: dict[str, Any], prompt: Any, tmp_path: Path) -> None:
    found = read(tmp_path / "file.jsonl", row)
    assert (found.format, found.kind, found.problems) == (form, "demonstrations", [])
    (candidate,) = found.candidates
    assert (candidate.prompt, candidate.completion) == (prompt, "Hello.")
    assert (candidate.origin, candidate.source) == ("line 1", "import:test")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi?", "chosen": "Hello.", "rejected": "No."},
        {"prompt": [USER], "chosen": [BOT], "rejected": [{"role": "assistant", "content": "No."}]},
        {"chosen": [USER, BOT], "rejected": [USER, {"role": "assistant", "content": "No."}]},
    ],
)
def test_pairs_with_and_without_a_prompt(row: dict[str, Any], tmp_path: Path) -> None:
    found = read(tmp_path / "file.jsonl", row)
    (candidate,) = found.candidates
    assert found.kind == "pairs"
    assert (candidate.prompt, candidate.chosen, candidate.rejected) == (ASKED, "Hello.", "No.")


def test_labels_and_prompts(tmp_path: Path) -> None:
    found = read(tmp_path / "a.jsonl", *({"prompt": "Hi?", "completion": "x", "label": truth} for truth in (True, "0")))
    assert [candidate.label for candidate in found.candidates] == [True, False]
    assert read(tmp_path / "b.jsonl", {"prompt": "Hi?"}).kind == "prompts"


def test_a_csv_has_the_same_keys_in_its_header_and_its_lines_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file.csv"
    path.write_text('\ufeffprompt,completion,license\n"Hi,\nyou?",Hello.,MIT\nWhy?,So.,\nx,y,z,w\n,only an answer,\n')
    found = read_file(path, "test", Options())
    assert (found.format, found.kind) == ("csv", "demonstrations")
    assert [c.prompt[0].content for c in found.candidates] == ["Hi,\nyou?", "Why?"]
    assert [c.licenses for c in found.candidates] == [frozenset({"MIT"}), frozenset()]
    assert [str(problem)[:30] for problem in found.problems] == [
        "line 5: it has more cells than",
        "line 6: its keys (completion) ",
    ]


def test_one_json_list_and_a_packed_file_are_read_too(tmp_path: Path) -> None:
    rows = [{"instruction": f"Q {k}?", "output": "A."} for k in range(3)]
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=2))
    (tmp_path / "lines.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    listed, packed = (read_file(tmp_path / name, "test", Options()) for name in ("list.json", "lines.jsonl.gz"))
    assert [c.prompt for c in listed.candidates] == [c.prompt for c in packed.candidates]
    assert [c.origin for c in listed.candidates] == ["line 2", "line 6", "line 10"]


def test_a_list_that_is_cut_off_says_where(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text('[\n{"prompt": "a", "completion": "b"},\n{"prompt": "c", "comp')
    found = read_file(tmp_path / "list.json", "test", Options())
    assert len(found.candidates) == 1
    assert found.problems[0].line == 3


GOOD = {"prompt": "Hi?", "completion": "Hello."}
BAD = [
    ("{", "not JSON"),
    ('["x"]', "not a JSON object"),
    ({"question": "x"}, "no known format"),
    ({"prompt": 7, "completion": "x"}, "not a list of messages"),
    ({"prompt": "x", "completion": 7}, "not a list of messages"),
    ({"messages": [USER]}, "does not end with an answer"),
    ({"conversations": [{"from": "bing", "value": "x"}]}, "is from 'bing'"),
    ({"messages": [USER, {"role": "assistant", "content": None}]}, "no text under 'content'"),
    ({"text": "plain"}, "no <|im_start|>"),
    ({"chosen": [USER, BOT], "rejected": [BOT]}, "do not begin with the same"),
    ({"prompt": "x", "completion": "y", "label": "maybe"}, "neither true nor false"),
    ({**GOOD, "weight": -1}, "not a number above 0"),
    ({**GOOD, "eval_only": "hm"}, "neither true nor false"),
    ({"prompt": "x", "chosen": "y"}, "a pair has both"),
    ({"instruction": "x", "output": 3}, "output is not a text"),
]


@pytest.mark.parametrize(("row", "what"), BAD)
def test_a_bad_row_is_named_and_the_others_stay(row: Any, what: str, tmp_path: Path) -> None:
    found = read(tmp_path / "file.jsonl", GOOD, row, {**GOOD, "prompt": "Bye?"})
    assert len(found.candidates) == 2
    (problem,) = found.problems
    assert problem.line == 2
    assert what in problem.what


def test_rows_of_another_kind_or_format_than_the_first_are_bad(tmp_path: Path) -> None:
    found = read(tmp_path / "a.jsonl", GOOD, {"prompt": "x", "chosen": "a", "rejected": "b"})
    assert "trl pairs, the rows before it are trl demonstrations" in found.problems[0].what
    assert "it is trl and not alpaca" in read(tmp_path / "b.jsonl", GOOD, format="alpaca").problems[0].what


def test_an_id_counts_once(tmp_path: Path) -> None:
    found = read(tmp_path / "a.jsonl", {**GOOD, "id": 5}, {**GOOD, "id": None}, {**GOOD, "id": "5"})
    assert [c.origin for c in found.candidates] == ["5", "line 2"]
    assert str(found.problems[0]) == "line 3: id '5' is on line 1 already"


def test_a_licence_is_the_rows_own_else_the_one_that_is_said(tmp_path: Path) -> None:
    found = read(tmp_path / "a.jsonl", {**GOOD, "license": "MIT"}, GOOD, license="CC-BY-NC-4.0")
    assert [c.licenses for c in found.candidates] == [frozenset({"MIT"}), frozenset({"CC-BY-NC-4.0"})]


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read"):
        read_file(tmp_path / "a.jsonl", "test", Options())


def test_rows_of_one_json_list_on_one_line_keep_names_of_their_own(tmp_path: Path) -> None:
    row = {"instruction": "Hi?", "output": "Hello."}
    found = read(tmp_path / "file.json", json.dumps([row, row, row]))
    assert found.problems == []
    assert [candidate.origin for candidate in found.candidates] == ["line 1", "line 1, row 2", "line 1, row 3"]
