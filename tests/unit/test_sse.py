"""Answers of upstreams, read after they were passed on, and rewritten where they are foreign."""

import json

import pytest

from serving.gateway.sse import Rewriter, summarize

CHUNKS = [
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


@pytest.mark.parametrize("cut", range(0, len(STREAM), 7))
def test_a_stream_that_breaks_off_anywhere_gives_the_text_so_far(cut: int) -> None:
    summary = summarize(STREAM[:cut], stream=True)
    assert "Grüß dich".startswith(summary.text)
    assert (summary.finish_reason == "stop") == (cut >= STREAM.index(b"stop") + len(b'stop"}]}'))


def test_a_whole_answer_is_summed_up() -> None:
    body = b'{"id":"u","choices":[{"message":{"content":"hi"},"finish_reason":"length"}],"usage":{"prompt_tokens":1}}'
    summary = summarize(body, stream=False)
    assert (summary.text, summary.finish_reason, summary.num_prompt_tokens) == ("hi", "length", 1)


@pytest.mark.parametrize("cut", range(1, len(STREAM), 5))
def test_a_foreign_stream_gets_our_id_and_the_asked_model_wherever_the_network_cuts_it(cut: int) -> None:
    rewriter = Rewriter("chatcmpl-ours", "hone")
    out = rewriter.feed(STREAM[:cut]) + rewriter.feed(STREAM[cut:]) + rewriter.flush()
    events = [json.loads(line[6:]) for line in out.decode().splitlines() if line.startswith("data: {")]
    assert [(event["id"], event["model"]) for event in events] == [("chatcmpl-ours", "hone")] * len(CHUNKS)
    assert [event["choices"] for event in events] == [chunk["choices"] for chunk in CHUNKS]
    assert b"system_fingerprint" not in out
    assert out.endswith(b"data: [DONE]\n\n")


def test_every_whole_line_leaves_the_rewriter_at_once() -> None:
    first = STREAM[: STREAM.index(b"\n\n") + 2]
    assert b"chatcmpl-ours" in Rewriter("chatcmpl-ours", "hone").feed(first)
