"""Files that are one JSON list: read record by record, whatever pieces they come in."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hone.errors import HoneError
from ingest import json_list
from ingest.files import Line, open_history

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=5)


def lines(path: Path) -> list[Line]:
    with open_history(path) as history:
        return list(history.lines())


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@settings(max_examples=40)
@given(OBJECTS, st.integers(1, 9), st.sampled_from([None, 1]), st.booleans())
def test_every_record_of_a_list_comes_out_as_it_stands_in_pieces_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, objects: list[Any], piece: int, indent: int | None, is_ascii: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "list.json"
    write(path, json.dumps(objects, indent=indent, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_list, "PIECE_CHARACTERS", piece)
        found = lines(path)
    assert [line.number for line in found] == list(range(1, len(objects) + 1))
    assert [json.loads(line.body.decode("utf-8", "surrogatepass")) for line in found] == objects


@pytest.mark.parametrize("name", ["a.json", "a.jsonl.gz"])
def test_a_list_is_known_by_its_beginning_and_lists_one_a_line_stay_lines(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for content, bodies in (
        (b'\xef\xbb\xbf[\n{"a": 1}]', [b'{"a": 1}']),
        (b"[]", []),
        (b'[{"a": 1}]\n[{"a": 2}]\n', [b'[{"a": 1}]', b'[{"a": 2}]']),
        (b'[1, "up"]\n', [b'[1, "up"]']),
        (b'[{"a": "\xff"}]', [b'{"a": "\xff"}']),
        (b'\xef\xbb\xbf{"a": 1}\n\n{"a": 2}', [b'{"a": 1}', b'{"a": 2}']),
    ):
        assert [line.body for line in lines(write(path, content))] == bodies


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'[{"a": 1}, {"a": 2', r"broken after its record 1 "),
        (b'[{"a": 1},', r"after its record 1 \(it is not closed"),
        (b'[{"a": 1}, {oops}, {"a": 3}]', r"after its record 1 \(Expecting property name"),
        (b'[{"a": 1}] {"a": 2}', r"something follows the end"),
        (b"[\n" + b"[" * 100_000, r"recursion"),
        (b'{\n  "a": 1\n}', r"one object a line \(`jq -c"),
    ],
)
def test_a_list_that_is_broken_says_after_which_record_and_what_to_do(
    tmp_path: Path, content: bytes, says: str
) -> None:
    with pytest.raises(HoneError, match=says):
        lines(write(tmp_path / "a.json", content))


def test_a_record_that_never_ends_is_not_collected_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_list, "MAX_RECORD_CHARACTERS", 100)
    monkeypatch.setattr(json_list, "PIECE_CHARACTERS", 10)
    with pytest.raises(HoneError, match=r"record 1 .*Unterminated string"):
        lines(write(tmp_path / "a.json", b'[{"a": 1}, {"a": "' + b"x" * 10_000 + b'"}]'))
