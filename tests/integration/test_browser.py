"""The browser module in a real browser, against the real gateway; and its own logic under node."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from hone.records import FeedbackKind
from hone.tokens import peek
from serving.gateway.browser import FOLDER
from tests.support.browser import Browser, chromium, empty_page
from tests.support.gateway import ForeignServer, Served, gateway
from tests.support.ingest_process import wait_for
from tests.support.web import serving

ROOT = Path(__file__).parents[2]
USE = "const { Hone } = await import(args[0] + '/browser/hone.js'); const hone = new Hone({ url: args[0] });"


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    with empty_page() as url:
        yield url


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, page: str) -> Iterator[Served]:
    """A gateway without an admin key, so that the demo may chat, which knows the page's origin."""
    pieces = [f"{word} " for word in ["Open", "the", "order,", "choose", "Share,", "and", "copy", "the", "link."]]
    folder = tmp_path_factory.mktemp("gateway")
    with serving(ForeignServer(pieces)) as url, gateway(folder, url, key="", cors_origins=(page,)) as served:
        yield served


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as window:
        yield window


def events_of(served: Served, token: str) -> dict[UUID, FeedbackKind]:
    found = served.feedback_so_far()
    return {event.event_id: event.kind for event in found if event.response_id == peek(token).response_id}


@pytest.mark.node
def test_the_modules_own_logic_holds() -> None:
    ran = subprocess.run(["node", "--test", "tests/browser/"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.browser
def test_a_page_of_another_origin_sends_acts_that_the_broker_has(browser: Browser, served: Served, page: str) -> None:
    token = served.answer_id()
    browser.open(page)
    ids = browser.run(
        USE + "return [await hone.thumbs(args[1], -1, { reasons: ['too long'] }), await hone.edit(args[1], 'Better'),"
        "await hone.outcome(args[1], 'resolved', 1)];",
        served.url,
        token,
    )
    found = events_of(served, token)
    assert [found[UUID(event_id)] for event_id in ids] == [FeedbackKind.THUMBS, FeedbackKind.EDIT, FeedbackKind.OUTCOME]
    assert [UUID(event_id).version for event_id in ids] == [7, 7, 7]


@pytest.mark.browser
def test_a_page_of_another_origin_streams_a_chat_and_rates_it_while_it_is_written(
    browser: Browser, served: Served, page: str
) -> None:
    browser.open(page)
    parts, event_id = browser.run(
        USE + "let first = null; const parts = [];"
        "for await (const part of hone.chat([{ role: 'user', content: 'How do I share?' }])) {"
        "  parts.push([part.id, part.text]); first ??= hone.thumbs(part.id, 1); }"
        "return [parts, await first];",
        served.url,
    )
    assert len({token for token, _ in parts}) == 1
    assert parts[-1][1].strip() == "Open the order, choose Share, and copy the link."
    assert events_of(served, parts[0][0]) == {UUID(event_id): FeedbackKind.THUMBS}


@pytest.mark.browser
def test_an_act_that_waits_when_the_page_is_left_arrives_all_the_same(
    browser: Browser, served: Served, page: str
) -> None:
    token = served.answer_id()
    browser.open(page)
    browser.run(
        "const { Hone } = await import(args[0] + '/browser/hone.js');"
        "const hone = new Hone({ url: args[0], fetch: () => Promise.reject(new TypeError('offline')) });"
        "hone.thumbs(args[1], 1); return null;",
        served.url,
        token,
    )
    browser.open("about:blank")
    wait_for(lambda: events_of(served, token))
    by_beacon = events_of(served, token)
    browser.open(page)
    browser.run(USE + "while (hone.outbox.all().length) await new Promise((r) => setTimeout(r, 20));", served.url)
    assert events_of(served, token) == by_beacon, "the next load sends it again under the same id"


@pytest.mark.browser
def test_a_page_whose_origin_is_not_listed_learns_nothing(browser: Browser, served: Served) -> None:
    with empty_page() as stranger:
        browser.open(stranger)
        told = browser.run(
            "return fetch(args[0] + '/v1/chat/completions', { method: 'POST', body: '{}',"
            "headers: { 'Content-Type': 'application/json' } }).then((r) => r.status, (e) => e.name);",
            served.url,
        )
    assert told == "TypeError"


@pytest.mark.browser
def test_the_demo_page_chats_and_every_button_is_an_event(browser: Browser, served: Served, tmp_path: Path) -> None:
    before = len(served.feedback_so_far())
    browser.open(f"{served.url}/browser/demo.html")
    browser.run("document.querySelector('#question').value = 'How do I share my order?'; ask.requestSubmit();")
    browser.until("document.querySelector('.answer:not(.writing) .text')?.textContent.length > 20")
    for button in ("up", "edit"):
        browser.run(f"document.querySelector('.answer [data-act={button}]').click();")
    browser.run(
        "const form = document.querySelector('.answer form'); form.querySelector('textarea').value = 'Press Share.';"
        "form.requestSubmit();"
    )
    browser.run("document.querySelector('.answer [data-act=again]').click();")
    browser.until("document.querySelectorAll('.answer:not(.writing)').length === 2")
    browser.run("document.querySelectorAll('.answer [data-act=prefer]')[1].click();")
    browser.run("document.querySelectorAll('.answer [data-act=solved]')[1].click();")
    browser.until("document.querySelector('#status').textContent.startsWith('5 sent')")
    browser.screenshot(tmp_path / "demo.png")
    kinds = [event.kind for event in served.feedback_so_far()[before:]]
    kinds_wanted = ["thumbs", "edit", "regenerate", "choice", "outcome"]
    assert sorted(kinds) == sorted(map(FeedbackKind, kinds_wanted))


def test_the_gateway_serves_the_module_and_the_page_and_nothing_else(served: Served) -> None:
    module = httpx.get(f"{served.url}/browser/hone.js", headers={"Origin": "https://any.example"}, trust_env=False)
    assert module.text == (FOLDER / "hone.js").read_text()
    assert module.headers["content-type"].startswith("text/javascript")
    assert module.headers["access-control-allow-origin"] == "*"
    page = httpx.get(f"{served.url}/browser/demo.html", trust_env=False)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path in ("package.json", "nothing.js", "..%2fapp.py"):
        assert httpx.get(f"{served.url}/browser/{path}", trust_env=False).status_code == 404
