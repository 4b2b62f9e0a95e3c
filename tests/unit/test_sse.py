"""Answers of upstreams, read after they were passed on, and rewritten where they are foreign."""

import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.gateway.chunks import events
from serving.gateway.runs import find_run
from serving.gateway.sse import Reading, Rewriter, Summary, summarize

CHUNKS: list[dict[str, Any]] = [
    {"id": "u1", "model": "m", "system_fingerprint": "f", "choices": [{"index": 0, "delta": {"role": "assistant"}}]},
    {"id": "u1", "model": "m", "choices": [{"index": 0, "delta": {"content": "Grüß "}, "finish_reason": None}]},
    {"id": "u1", "model": "m", "choices": [{"index": 0, "delta": {"content": "dich"}, "finish_reason": None}]},
    {"id": "u1", "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    {"id": "u1", "model": "m", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
]
STREAM = (
    b"".join(b"data: " + json.dumps(c, ensure_ascii=False).encode() + b"\n\n" for c in CHUNKS) + b"data: [DONE]\n\n"
)


def test_a_stream_is_summed_up() -> None:
    summary = summarize(STREAM, stream=True)
    assert (summary.text, summary.finish_reason) == ("Grüß dich", "stop")
    assert (summary.num_prompt_tokens, summary.num_completion_tokens) == (3, 2)


def test_a_stream_that_breaks_off_at_any_byte_gives_the_text_so_far() -> None:
    ends = [
        STREAM.index(text.encode()) + len(text.encode() + b'"}, "finish_reason": null}]}') for text in ("Grüß ", "dich")
    ]
    for cut in range(len(STREAM) + 1):
        summary = summarize(STREAM[:cut], stream=True)
        assert summary.text == ("", "Grüß ", "Grüß dich")[sum(cut >= end for end in ends)]
        assert (summary.finish_reason == "stop") == (cut >= STREAM.index(b"stop") + len(b'stop"}]}'))
        assert (summary.num_completion_tokens == 2) == (cut >= STREAM.index(b"}}\n") + 2)


def test_a_whole_answer_is_summed_up() -> None:
    body = b'{"id":"u","choices":[{"message":{"content":"hi"},"finish_reason":"length"}],"usage":{"prompt_tokens":1}}'
    summary = summarize(body, stream=False)
    assert (summary.text, summary.finish_reason, summary.num_prompt_tokens) == ("hi", "length", 1)


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_a_foreign_stream_gets_our_id_and_the_asked_model_at_whichever_byte_the_network_cuts_it(ending: bytes) -> None:
    stream = STREAM.replace(b"\n", ending)
    uncut = rewritten(stream)
    for cut in range(len(stream) + 1):
        assert rewritten(stream[:cut], stream[cut:]) == uncut
    assert rewritten(*(stream[i : i + 1] for i in range(len(stream)))) == uncut
    assert summarize(uncut, stream=True) == summarize(STREAM, stream=True)


def test_what_a_foreign_stream_says_before_it_breaks_off_is_what_the_client_got() -> None:
    for cut in range(len(STREAM) + 1):
        out = rewritten(STREAM[:cut])
        said = msgspec.structs.replace(summarize(STREAM[:cut], stream=True), is_read=True)
        assert summarize(out, stream=True) == said, "of an event that broke off the client gets nothing"
        assert b"u1" not in out
        assert b"finger" not in out


def test_a_foreign_stream_keeps_its_choices_and_loses_its_fingerprint() -> None:
    out = rewritten(STREAM)
    found = [json.loads(line[6:]) for line in out.decode().splitlines() if line.startswith("data: {")]
    assert [(event["id"], event["model"]) for event in found] == [("chatcmpl-ours", "hone")] * len(CHUNKS)
    assert [event["choices"] for event in found] == [chunk["choices"] for chunk in CHUNKS]
    assert b"system_fingerprint" not in out
    assert out.endswith(b"data: [DONE]\n\n")


def rewritten(*pieces: bytes) -> bytes:
    rewriter = Rewriter("chatcmpl-ours", "hone")
    return b"".join(rewriter.feed(piece) for piece in pieces) + rewriter.flush()


def test_every_whole_line_leaves_the_rewriter_at_once() -> None:
    first = STREAM[: STREAM.index(b"\n\n") + 2]
    assert b"chatcmpl-ours" in Rewriter("chatcmpl-ours", "hone").feed(first)


def an_event(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
    long_id = "u1" * 60  # as long as ours: a handful of events is then a run
    return {"id": long_id, "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} | more


WORDS = st.text(max_size=6) | st.sampled_from(['"', "\\", "\n\ndata: ", '","', "content", '"content":"x"', "\ue000"])
EVENTS = st.one_of(
    WORDS.map(lambda text: an_event({"content": text})),
    st.sampled_from(
        [
            an_event({"role": "assistant", "content": ""}),
            an_event({"content": "a"}, created=2),
            an_event({"content": "e"}, id="u2", system_fingerprint="\ue000"),
            an_event({"content": "\ue000"}, usage={"completion_tokens": 3}),
            an_event({}, choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]),
            an_event({}, choices=[{"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "c"}}]),
            an_event({"tool_calls": [{"function": {"arguments": '{"content":"d"}'}}]}),
        ]
    ),
)


ENDINGS = st.sampled_from(["\n\n", "\r\n\r\n", "\nevent: x\n\n", "\n"])


@st.composite
def cut_streams(draw: st.DrawFn) -> list[bytes]:
    """A stream of some events, cut where the network likes."""
    ending = draw(ENDINGS)
    chunks = draw(st.lists(EVENTS, max_size=30))
    stream = "".join(f"data: {json.dumps(one)}{ending}" for one in chunks).encode() + b"data: [DONE]\n\n"
    cuts = draw(st.lists(st.integers(0, len(stream)), max_size=4).map(sorted))
    return [stream[start:end] for start, end in pairwise([0, *cuts, len(stream)])]


@settings(max_examples=300, deadline=None)
@given(cut_streams())
def test_events_read_at_once_say_what_they_say_one_by_one_however_the_stream_is_cut(pieces: list[bytes]) -> None:
    stream, reading, one_by_one = b"".join(pieces), Reading(stream=True), Reading(stream=True)
    for event in events(stream):
        one_by_one.add(event)
    for piece in pieces:
        reading.feed(piece)
    assert reading.summary() == summarize(stream, stream=True) == one_by_one.summary()


@settings(max_examples=300, deadline=None)
@given(cut_streams())
def test_events_rewritten_at_once_are_what_they_are_one_by_one_however_the_stream_is_cut(pieces: list[bytes]) -> None:
    assert rewritten(*pieces) == rewritten(*b"".join(pieces).splitlines(keepends=True))


def test_a_long_run_is_rewritten_in_its_frame() -> None:
    chunks = [an_event({"content": f'"w{n}" '}, system_fingerprint="f", model="theirs") for n in range(50)]
    stream = "".join(f"data: {json.dumps(one)}\n\n" for one in chunks).encode()
    run = find_run(stream)
    assert run is not None
    assert len(run.strings) == 50
    out = rewritten(stream)
    assert summarize(out, stream=True) == summarize(stream, stream=True)
    assert out.count(b"chatcmpl-ours") == 50
    assert b"theirs" not in out
    assert b"fingerprint" not in out


def test_events_that_differ_in_their_text_only_are_read_at_once() -> None:
    chunks = [an_event({"role": "assistant", "content": ""}), *(an_event({"content": f"w{n} "}) for n in range(50))]
    stream = "".join(f"data: {json.dumps(one)}\n\n" for one in chunks).encode()
    run = find_run(stream)
    assert run is not None
    assert (run.text, run.before.count(b"data:"), run.after) == ("".join(f"w{n} " for n in range(50)), 1, b"")


def test_bytes_that_are_no_utf8_are_read_as_replacement_characters() -> None:
    broken = b'data: {"choices":[{"delta":{"content":"a\xff"}}]}\n\n'
    assert summarize(broken, stream=True).text == "a\ufffd"
    assert summarize(broken * 80, stream=True).text == "a\ufffd" * 80
    assert summarize(b'{"choices":[{"message":{"content":"\xc3"}}]}', stream=False).text == "\ufffd"


def test_what_cannot_be_read_is_told_and_in_a_stream_passed_on_as_it_is() -> None:
    deep = b'{"id":"x","deep":' + b"[" * 5000 + b"]" * 5000 + b"}"
    assert Rewriter("chatcmpl-1", "hone").document(deep) is None
    stream = b"data: " + deep + b"\n\n" + STREAM
    assert rewritten(stream).startswith(b"data: " + deep + b"\n\n")
    assert (summarize(stream, stream=True).text, summarize(stream, stream=True).is_read) == (
        summarize(STREAM, stream=True).text,
        False,
    )
    assert not summarize(deep, stream=False).is_read
    assert summarize(STREAM, stream=True).is_read


def test_a_name_that_is_no_utf8_does_not_keep_a_foreign_id() -> None:
    ours = Rewriter("chatcmpl-1", "hone").document(b'{"id":"theirs","a\xff":1}')
    assert json.loads(ours or b"")["id"] == "chatcmpl-1"


def test_two_texts_in_place_of_one_are_no_event() -> None:
    stream = b"".join(
        b'data: {"choices":[{"delta":{"content":%s}}]}\n\n' % text for text in [b'"a"'] * 80 + [b'"b","c"']
    )
    assert summarize(stream, stream=True) == Summary("a" * 80, None, None, None, is_read=False)
