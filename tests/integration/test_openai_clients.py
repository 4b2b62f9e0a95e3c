"""OpenAI's own clients, Python and JavaScript, unchanged before the gateway: only their base URL is ours."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openai
import pytest

from hone.tokens import parse_keys
from tests.support.gateway import HI, KEY, TOKEN_KEYS, ForeignServer, Served, gateway
from tests.support.web import serving

JS_CLIENT = Path(__file__).parents[2] / "var" / "openai-js"
"""`npm install openai` is run there, once."""
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "find_order", "parameters": {"type": "object", "properties": {}}}}
]
SCRIPT = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: process.argv[3] });
const messages = [{ role: "user", content: "How do I share my order?" }];
const models = (await client.models.list()).data.map((model) => model.id);
const whole = await client.chat.completions.create({ model: "hone", messages });
const pieces = [];
const ids = new Set();
const stream = await client.chat.completions.create({ model: "hone", messages, stream: true, user: "ann" });
for await (const chunk of stream) {
  ids.add(chunk.id);
  pieces.push(chunk.choices[0].delta.content ?? "");
}
let refusal = null;
try {
  await client.chat.completions.create({ model: "hone", messages, n: 2 });
} catch (error) {
  refusal = [error.constructor.name, error.status];
}
console.log(JSON.stringify({ models, whole: whole.choices[0].message.content, id: whole.id,
                             text: pieces.join(""), ids: [...ids], refusal }));
"""


@pytest.fixture(scope="module")
def foreign() -> ForeignServer:
    return ForeignServer(["Press ", "Share."])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, foreign: ForeignServer) -> Iterator[Served]:
    with serving(foreign) as url, gateway(tmp_path_factory.mktemp("var"), url) as served:
        yield served


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def is_token(text: str) -> bool:
    return parse_keys(TOKEN_KEYS).verify(text, datetime.now(UTC)) is not None


def test_the_python_client_lists_models_and_gets_whole_answers(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["hone"]
    answer = client.chat.completions.create(model="hone", messages=HI)  # type: ignore[call-overload]
    assert (answer.choices[0].message.content, answer.model) == ("Press Share.", "hone")
    assert is_token(answer.id)


def test_the_python_client_streams(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="hone", messages=HI, stream=True))  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Press Share."
    (streamed,) = {chunk.id for chunk in chunks}
    assert is_token(streamed)


def test_tools_pass_through_in_both_directions(client: openai.OpenAI, foreign: ForeignServer) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "find_order", "arguments": "{}"}}
    foreign.calls = [call]
    try:
        asked = client.chat.completions.create(model="hone", messages=HI, tools=TOOLS)  # type: ignore[call-overload]
    finally:
        foreign.calls = []
    made = asked.choices[0].message.tool_calls
    assert made is not None
    assert (made[0].id, made[0].function.name, asked.choices[0].finish_reason) == ("call_1", "find_order", "tool_calls")
    assert foreign.seen[-1]["tools"] == TOOLS
    said = [*HI, {"role": "assistant", "content": None, "tool_calls": [call]}]
    said.append({"role": "tool", "tool_call_id": "call_1", "content": "on its way"})
    client.chat.completions.create(model="hone", messages=said, tools=TOOLS)  # type: ignore[call-overload]
    assert foreign.seen[-1]["messages"] == said


def test_problems_are_the_clients_own_errors(client: openai.OpenAI, served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="n = 2"):
        client.chat.completions.create(model="hone", messages=HI, n=2)  # type: ignore[call-overload]
    stranger = openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises((openai.AuthenticationError, openai.InternalServerError)):
        stranger.models.list()


def js_client() -> str | None:
    """Return why the JavaScript client cannot run, having installed it if it may."""
    if not (shutil.which("node") and shutil.which("npm")):
        return "not on the path: node and npm (install node 20 or newer)"
    if not (JS_CLIENT / "node_modules" / "openai").exists():
        JS_CLIENT.mkdir(parents=True, exist_ok=True)
        words = ["npm", "install", "--no-fund", "--no-audit", "--prefix", str(JS_CLIENT), "openai"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
        if done.returncode:
            return f"npm install openai: {done.stderr.strip()[-200:]}"
    return None


def test_the_javascript_client_works_unchanged(served: Served) -> None:
    if reason := js_client():
        pytest.skip(reason)
    script = JS_CLIENT / "ask.mjs"
    script.write_text(SCRIPT)
    done = subprocess.run(["node", str(script), served.url, KEY], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["models"], said["whole"], said["text"]) == (["hone"], "Press Share.", "Press Share.")
    assert said["refusal"] == ["BadRequestError", 400]
    assert all(is_token(text) for text in (said["id"], *said["ids"]))
    assert len(said["ids"]) == 1
