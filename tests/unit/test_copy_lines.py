from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from hone.records import Feedback, Message, Response
from hone.store.events import FEEDBACK_COLUMNS, RESPONSE_COLUMNS, feedback_line, response_line
from tests.support.events import feedback, response

WILD = 'a\tb\\c\nd\re"f'


def free_texts(record: type[msgspec.Struct]) -> list[str]:
    """The fields of a record that may hold any text."""
    fields = msgspec.structs.fields(record)
    return [field.name for field in fields if field.type in (str, str | None)]


CASES: list[tuple[Any, Callable[[Any], str], Sequence[str], str]] = [
    *((feedback("thumbs", "x"), feedback_line, FEEDBACK_COLUMNS, name) for name in free_texts(Feedback)),
    *((response("x"), response_line, RESPONSE_COLUMNS, name) for name in free_texts(Response)),
]


@pytest.mark.parametrize(("record", "line", "columns", "name"), CASES)
def test_any_text_stays_one_field_of_one_line(
    record: Any, line: Callable[[Any], str], columns: Sequence[str], name: str
) -> None:
    written = line(msgspec.structs.replace(record, **{name: WILD}))
    fields = written.split("\t")
    assert len(fields) == len(columns)
    assert "\n" not in written
    assert fields[columns.index(name)] == 'a\\tb\\\\c\\nd\\re"f'


def test_what_is_not_set_is_null_and_what_is_empty_is_not() -> None:
    fields = dict(zip(FEEDBACK_COLUMNS, feedback_line(feedback("comment", None, text="")).split("\t"), strict=True))
    assert fields["response_id"] == fields["value"] == fields["name"] == r"\N"
    assert (fields["text"], fields["rejected"], fields["reasons"]) == ("", "{}", "{}")


def test_json_columns_are_json_with_their_backslashes_escaped_once_more() -> None:
    record = response("x", messages=(Message("user", "a\tb"),), parameters={"stop": ["\n"]})
    fields = dict(zip(RESPONSE_COLUMNS, response_line(record).split("\t"), strict=True))
    assert fields["messages"] == r'[{"role":"user","content":"a\\tb"}]'
    assert fields["parameters"] == r'{"stop":["\\n"]}'
