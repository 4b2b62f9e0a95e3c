"""Rows as CSV: what COPY reads is what the record held."""

import csv
from collections.abc import Callable, Sequence
from io import StringIO
from typing import Any

import msgspec
import pytest

from hone.records import Feedback, Message, Response
from hone.store.copy_text import array, csv_lines
from hone.store.erasure import ERASED, Forgotten
from hone.store.events import FEEDBACK_COLUMNS, RESPONSE_COLUMNS, feedback_row, response_row
from tests.support.events import feedback, response

CONTROLS = "".join(map(chr, range(1, 32)))
WILD = 'a\tb\\c\nd\re"f,g\\n\\"h],[null\\N' + CONTROLS + "\x7f\u2028😀"


def fields(columns: Sequence[str], *rows: tuple[object, ...]) -> list[dict[str, str]]:
    """The lines, read by Python's reader as Postgres reads them."""
    text = csv_lines(rows).decode()
    read = csv.reader(StringIO(text, newline=""), doublequote=False, escapechar="\\", strict=True)
    return [dict(zip(columns, row, strict=True)) for row in read]


def answer_row(answer: Response) -> tuple[object, ...]:
    return response_row(answer, Forgotten())


def free_texts(record: type[msgspec.Struct]) -> list[str]:
    """The fields of a record that may hold any text."""
    fields = msgspec.structs.fields(record)
    return [field.name for field in fields if field.type in (str, str | None)]


CASES: list[tuple[Any, Callable[[Any], tuple[object, ...]], Sequence[str], str]] = [
    *((feedback("thumbs", "x"), feedback_row, FEEDBACK_COLUMNS, name) for name in free_texts(Feedback)),
    *((response("x"), answer_row, RESPONSE_COLUMNS, name) for name in free_texts(Response)),
]


@pytest.mark.parametrize(("record", "row", "columns", "name"), CASES)
def test_any_text_stays_one_field_of_one_row(
    record: Any, row: Callable[[Any], tuple[object, ...]], columns: Sequence[str], name: str
) -> None:
    wild = msgspec.structs.replace(record, **{name: WILD})
    assert [found[name] for found in fields(columns, row(record), row(wild), row(record))][1] == WILD


def test_every_column_holds_the_field_of_its_name() -> None:
    """The row is written by hand, for speed: this keeps it in step with the columns."""
    plain = {"messages", "completion", "parameters", "rejected", "reasons"}
    for record, row, columns in (
        (feedback("choice", "x"), feedback_row(feedback("choice", "x")), FEEDBACK_COLUMNS),
        (response("x"), answer_row(response("x")), RESPONSE_COLUMNS),
    ):
        places = dict(zip(columns, row, strict=True))
        for name in set(columns) - plain - {"event_id"}:
            assert places[name] == getattr(record, name), name


def test_what_is_not_set_is_an_unquoted_null_and_what_is_empty_is_not() -> None:
    line = csv_lines([(None, "", "null", True, 1.5)])
    assert line == b'null,"","null",true,1.5\n'


def test_json_columns_keep_their_own_escapes() -> None:
    record = response("x", messages=(Message("user", "a\tb"),), parameters={"stop": ["\n"]})
    (found,) = fields(RESPONSE_COLUMNS, answer_row(record))
    assert found["messages"] == r'[{"role":"user","content":"a\tb"}]'
    assert found["parameters"] == r'{"stop":["\n"]}'


def test_words_of_an_array_are_quoted_where_they_must_be() -> None:
    assert array(()) == "{}"
    assert array(("too long", 'a"b\\c')) == r'{too long,"a\"b\\c"}'
    assert array(("null", "", " x", "a,b", "{}")) == '{"null",""," x","a,b","{}"}'


def test_a_forgotten_persons_answer_has_no_texts() -> None:
    record = response("x", parameters={"stop": ["x"]})
    row = dict(zip(RESPONSE_COLUMNS, response_row(record, Forgotten(1, {record.user_id.int})), strict=True))
    assert (row["messages"], row["completion"], row["parameters"]) == ("[]", ERASED, "{}")
