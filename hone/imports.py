"""Reads other people's training files: Alpaca, ChatML, ShareGPT, CSV and TRL's JSON lines. Its only act is reading.

A file holds rows of one kind: demonstrations, pairs, labels or prompts. What a row is follows from its keys; what is
wrong with it is said with its line. A conversation of several turns is one demonstration: its last answer, after all
before it.
"""

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hone.datasets import Candidate, Kind
from hone.errors import ConfigError
from hone.records import Message

Format = Literal["alpaca", "chatml", "sharegpt", "csv", "trl"]
Values = Mapping[str, Any]

SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
CHATML_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
TRUE = frozenset({"true", "1", "1.0", "yes", "good", "up"})
FALSE = frozenset({"false", "0", "0.0", "-1", "no", "bad", "down"})
UNREADABLE = "a file holds JSON objects, one a line or in one list, or CSV with a header"


class BadRow(ValueError):
    """What is wrong with one row."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that cannot be imported."""

    line: int
    what: str

    def __str__(self) -> str:
        """`line 3: …`."""
        return f"line {self.line}: {self.what}"


@dataclass(frozen=True, slots=True)
class Options:
    """What a person says of a file beside its content."""

    format: Format | None = None
    "None: found out."
    license: str | None = None
    "Of rows that name none; None: the operator's own."


@dataclass(slots=True)
class Imported:
    """The rows of a file, and what is wrong with the others."""

    format: Format | None = None
    kind: Kind | None = None
    candidates: list[Candidate] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def read_file(path: Path, label: str, options: Options) -> Imported:
    """Return the file's rows as candidates of a dataset; rows of another kind than the first good one are problems.

    Raises:
        ConfigError: the file cannot be read.
    """
    found = Imported()
    seen: dict[str, int] = {}
    for line, values in read_rows(path):
        try:
            if isinstance(values, Problem):
                raise BadRow(values.what)
            form = form_of(values, is_csv(path))
            candidate = candidate_of(named(values, line, seen), form, line, label, options)
            check_same(found, form, options)
            if candidate.origin in seen:
                raise BadRow(f"id {candidate.origin!r} is on line {seen[candidate.origin]} already")
        except BadRow as error:
            found.problems.append(Problem(line, str(error)))
            continue
        found.format, found.kind = form.format, form.kind
        seen[str(candidate.origin)] = line
        found.candidates.append(candidate)
    return found


def read_rows(path: Path) -> Iterator[tuple[int, Values | Problem]]:
    """Yield (line from 1, row or what is wrong). Raises ConfigError where the file is no text."""
    try:
        text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path} ({error}): {UNREADABLE}") from None
    text = text.removeprefix("\ufeff")
    if is_csv(path):
        yield from csv_rows(text)
    elif text.lstrip().startswith("["):
        yield from list_rows(text)
    else:
        yield from json_lines(text)


def is_csv(path: Path) -> bool:
    """Say whether the name is that of a CSV file, packed or not."""
    return ".csv" in path.suffixes[-2:]


def csv_rows(text: str) -> Iterator[tuple[int, Values | Problem]]:
    """Yield the rows below the header; empty cells count as absent."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    for row in reader:
        if None in row:
            yield reader.line_num, Problem(reader.line_num, "it has more cells than the header")
        else:
            yield reader.line_num, {key: value for key, value in row.items() if value not in ("", None)}


def json_lines(text: str) -> Iterator[tuple[int, Values | Problem]]:
    """Yield the objects of a file with one a line; empty lines are passed over."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, decoded(line, number)


def decoded(line: str, number: int) -> Values | Problem:
    """Return the object of one line."""
    try:
        values = json.loads(line)
    except ValueError as error:
        return Problem(number, f"it is not JSON ({error})")
    return values if isinstance(values, dict) else Problem(number, "it is not a JSON object")


def list_rows(text: str) -> Iterator[tuple[int, Values | Problem]]:
    """Yield the objects of one JSON list, each with the line on which it begins; after broken JSON there is no next."""
    decoder, at, line, counted = json.JSONDecoder(), text.index("[") + 1, 1, 0
    while True:
        at = re.compile(r"[\s,]*").match(text, at).end()  # type: ignore[union-attr]
        line, counted = line + text.count("\n", counted, at), at
        if text[at : at + 1] in ("]", ""):
            if not text[at:]:
                yield line, Problem(line, "the list is not closed: the file is cut off")
            return
        try:
            values, at = decoder.raw_decode(text, at)
        except ValueError as error:
            yield line, Problem(line, f"it is not JSON ({error}); nothing after it can be read")
            return
        yield line, values if isinstance(values, dict) else Problem(line, "it is not a JSON object")


@dataclass(frozen=True, slots=True)
class Form:
    """One way to write a row: the keys by which it is known, what it is, and how it is read."""

    format: Format
    kind: Kind
    keys: frozenset[str]
    read: Callable[[Values], dict[str, Any]]


def form_of(values: Values, is_table: bool) -> Form:
    """Return the first form whose keys the row has. Raises BadRow where it has those of none."""
    for form in FORMS:
        if form.keys <= values.keys():
            return Form("csv", form.kind, form.keys, form.read) if is_table else form
    shown = ", ".join(sorted(values)) or "none"
    raise BadRow(f"its keys ({shown}) are of no known format: see docs/cli.md under `hone import`")


def check_same(found: Imported, form: Form, options: Options) -> None:
    """Raise BadRow where the row is of another format or kind than asked for or than the rows before it."""
    if options.format and form.format != options.format:
        raise BadRow(f"it is {form.format} and not {options.format}")
    if found.kind and (form.format, form.kind) != (found.format, found.kind):
        raise BadRow(f"it is {form.format} {form.kind}, the rows before it are {found.format} {found.kind}")


def candidate_of(values: Values, form: Form, line: int, label: str, options: Options) -> Candidate:
    """Return the row as a candidate; without an id it is named by its line. Raises BadRow."""
    texts = form.read(values)
    license = values.get("license") or options.license
    return Candidate(
        kind=form.kind,
        source=f"import:{label}",
        origin=str(line_name(line) if values.get("id") is None else values["id"]),
        weight=number_of(values.get("weight", 1.0)),
        licenses=frozenset([str(license)] if license else []),
        eval_only=truth_of(values.get("eval_only", False), "eval_only"),
        **texts,
    )


def named(values: Values, line: int, seen: Mapping[str, int]) -> Values:
    """Return the row; one without an id that shares its line with an earlier one is named by its number there."""
    if values.get("id") is not None or line_name(line) not in seen:
        return values
    number = 1 + sum(1 for there in seen.values() if there == line)
    return {**values, "id": f"{line_name(line)}, row {number}"}


def line_name(line: int) -> str:
    """Return the name of a row that has none."""
    return f"line {line}"


def alpaca(values: Values) -> dict[str, Any]:
    """`instruction`, perhaps `input`, `output`."""
    question = "\n\n".join(text_of(values, key) for key in ("instruction", "input") if values.get(key))
    return {"prompt": (Message("user", question),), "completion": text_of(values, "output")}


def conversation(messages: Any, role: str, content: str, roles: Mapping[str, str] | None = None) -> list[Message]:
    """Return the messages of a list of objects. Raises BadRow on an unknown role or a message that is no text."""
    if not isinstance(messages, list) or not messages:
        raise BadRow("its conversation is not a list of messages")
    found = []
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get(content), str):
            raise BadRow(f"a message has no text under {content!r}")
        name = str(message.get(role))
        if roles is not None and name not in roles:
            raise BadRow(f"a message is from {name!r}: known are {', '.join(roles)}")
        found.append(Message(roles[name] if roles else name, message[content]))
    return found


def demonstration(messages: list[Message]) -> dict[str, Any]:
    """Return the last answer and all before it. Raises BadRow where the conversation does not end with an answer."""
    if messages[-1].role != "assistant" or len(messages) < 2:
        raise BadRow("its conversation does not end with an answer to something")
    return {"prompt": tuple(messages[:-1]), "completion": messages[-1].content or ""}


def chatml(values: Values) -> dict[str, Any]:
    """`messages`: [{role, content}, …]."""
    return demonstration(conversation(values["messages"], "role", "content"))


def chatml_text(values: Values) -> dict[str, Any]:
    """`text`: turns between `<|im_start|>role` and `<|im_end|>`."""
    turns = CHATML_TURN.findall(text_of(values, "text"))
    if not turns:
        raise BadRow("its text has no <|im_start|> … <|im_end|>")
    return demonstration([Message(role, text.strip("\n")) for role, text in turns])


def sharegpt(values: Values) -> dict[str, Any]:
    """`conversations`: [{from, value}, …] of human, gpt and system."""
    return demonstration(conversation(values["conversations"], "from", "value", SHAREGPT_ROLES))


def pair(values: Values) -> dict[str, Any]:
    """`prompt`, `chosen`, `rejected`: texts, or lists of messages; whole conversations may go without `prompt`."""
    chosen, rejected = (answer_of(values[key], key) for key in ("chosen", "rejected"))
    if "prompt" in values:
        return {"prompt": prompt_of(values["prompt"]), "chosen": chosen[1], "rejected": rejected[1]}
    if not chosen[0] or chosen[0] != rejected[0]:
        raise BadRow("it has no prompt, and chosen and rejected do not begin with the same messages")
    return {"prompt": chosen[0], "chosen": chosen[1], "rejected": rejected[1]}


def completion(values: Values) -> dict[str, Any]:
    """`prompt`, `completion` (or `response`)."""
    key = "completion" if "completion" in values else "response"
    return {"prompt": prompt_of(values["prompt"]), "completion": answer_of(values[key], key)[1]}


def labelled(values: Values) -> dict[str, Any]:
    """`prompt`, `completion`, `label`."""
    return {**completion(values), "label": truth_of(values["label"], "label")}


def prompt_only(values: Values) -> dict[str, Any]:
    """`prompt` alone. Raises BadRow where half a pair is beside it."""
    if values.keys() & {"chosen", "rejected"}:
        raise BadRow("it has a prompt and one of chosen and rejected: a pair has both")
    return {"prompt": prompt_of(values["prompt"])}


def prompt_of(value: Any) -> tuple[Message, ...]:
    """Return a text as a question, or a list of messages."""
    if isinstance(value, str):
        return (Message("user", value),)
    return tuple(conversation(value, "role", "content"))


def answer_of(value: Any, key: str) -> tuple[tuple[Message, ...], str]:
    """Return (messages before the answer, the answer) of a text or a list of messages that ends with one."""
    if isinstance(value, str):
        return (), value
    messages = conversation(value, "role", "content")
    if messages[-1].role != "assistant":
        raise BadRow(f"{key} does not end with an answer")
    return tuple(messages[:-1]), messages[-1].content or ""


def text_of(values: Values, key: str) -> str:
    """Return a value that must be a text."""
    value = values[key]
    if not isinstance(value, str):
        raise BadRow(f"{key} is not a text")
    return value


def truth_of(value: Any, key: str) -> bool:
    """Return what a truth value, or a word for one, means."""
    word = str(value).strip().lower()
    if word not in TRUE | FALSE:
        raise BadRow(f"{key} = {value!r} is neither true nor false")
    return word in TRUE


def number_of(value: Any) -> float:
    """Return the weight of a row, above 0."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 < number < float("inf"):
        raise BadRow(f"weight = {value!r} is not a number above 0")
    return number


FORMS = (
    Form("sharegpt", "demonstrations", frozenset({"conversations"}), sharegpt),
    Form("chatml", "demonstrations", frozenset({"messages"}), chatml),
    Form("alpaca", "demonstrations", frozenset({"instruction", "output"}), alpaca),
    Form("trl", "pairs", frozenset({"chosen", "rejected"}), pair),
    Form("trl", "labels", frozenset({"prompt", "completion", "label"}), labelled),
    Form("trl", "demonstrations", frozenset({"prompt", "completion"}), completion),
    Form("trl", "demonstrations", frozenset({"prompt", "response"}), completion),
    Form("chatml", "demonstrations", frozenset({"text"}), chatml_text),
    Form("trl", "prompts", frozenset({"prompt"}), prompt_only),
)
"""Known by their keys, in this order."""
