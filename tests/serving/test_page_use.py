"""The chat page as people use it: in Chromium, with a model behind it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("httpx", reason="the package httpx is not installed")
from chat_in_browser import ANSWER, FOREIGN, Chat
from chromium import Page, browsing, find_chromium
from page_server import entry, serving_page
from serving_models import Server, held, save_tiny, serving

from lit_llm.data.conversations.reading import read_conversations, read_preferences

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium; apt-get install chromium")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = save_tiny(tmp_path_factory.mktemp("page"))
    with serving(folder, default_max_tokens=6, api_key="sesame") as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, Path]]:
    folder = tmp_path_factory.mktemp("browser")
    with browsing(folder) as page:
        yield page, folder


@pytest.fixture
def chat(server: Server, browser: tuple[Page, Path]) -> Iterator[Chat]:
    page, folder = browser
    page.problems.clear()
    page.look(1200)
    chat = Chat(page, f"{server.url}/", folder)
    chat.open()
    yield chat
    assert page.problems == []


def test_edit_branch_and_regenerate(chat: Chat) -> None:
    page = chat.page
    chat.ask("ab")
    chat.ask("cd")
    first = chat.turns()
    assert len(first) == 4 and first[0] == "ab"
    page.click(".turn.user button", "Edit")
    chat.set(".edit textarea", "abc")
    page.click(".edit button", "Send as a new version")
    page.wait(f"document.querySelectorAll('{ANSWER}').length === 1 && document.getElementById('stop').hidden")
    assert chat.turns()[0] == "abc" and chat.text(".versions span") == "2 of 2"
    page.click(".versions button", "‹")
    assert chat.turns() == first
    assert page.run("document.activeElement.textContent") == "›"  # the other one leads nowhere now
    page.click(".turn:last-child button", "Regenerate")
    page.wait(f"document.querySelectorAll('.turn:last-child{ANSWER[5:]} .versions:not([hidden])').length === 1")
    assert chat.text(".turn:last-child .versions span") == "2 of 2" and chat.turns()[:3] == first[:3]
    page.click(".turn:last-child button", "Edit")
    chat.set(".edit textarea", "what it should have said")
    page.click(".edit button", "Save as a new version")
    assert chat.turns()[3] == "what it should have said" and "edited" in chat.text(".turn:last-child .note")
    kept = chat.turns()
    chat.reload()
    page.click("#chats .open", "ab")
    assert chat.turns() == kept
    page.run("document.getElementById('message').focus()")
    page.key("ArrowUp")
    assert page.run("document.activeElement.value") == "cd"
    page.key("Escape")
    page.click("#chats .erase")
    chat.agree()
    page.wait("document.querySelectorAll('.turn').length === 0")
    assert chat.stored() == {}


def test_an_answer_that_is_being_written_is_said_once_and_can_be_stopped(chat: Chat, server: Server) -> None:
    page = chat.page
    page.run(
        "window.said = []; new MutationObserver(() => said.push(document.getElementById('status').textContent))"
        ".observe(document.getElementById('status'), { childList: true })"
    )
    with held(server.loaded.model, after=3) as release:
        chat.write("ab")
        page.wait("document.querySelector('.turn.busy .body').textContent.length > 0")
        assert page.run("document.getElementById('send').hidden && !document.getElementById('stop').hidden")
        assert page.run("document.querySelectorAll('[aria-live], [role=log]').length") == 0
        page.wait("said.at(-1) === 'The model is writing.'")
        page.key("Escape")
        page.wait(f"document.querySelector('{ANSWER}')")
        release()
    assert "stopped" in chat.text(".turn.assistant .note") and chat.turns()[1] != ""
    page.wait("said.at(-1)?.startsWith('The answer: ')")
    assert [text for text in page.run("said") if text] == ["The model is writing.", f"The answer: {chat.turns()[1]}"]
    assert len(chat.stored()) == 1


def test_what_failed_comes_back_to_be_sent_again(chat: Chat, server: Server) -> None:
    page = chat.page
    with held(server.loaded.model, fail=True) as release:
        chat.write("ab")
        page.wait("document.querySelector('.turn.busy')")
        release()
        page.wait("!document.getElementById('error').hidden")
    assert chat.turns() == [] and page.run("document.getElementById('message').value") == "ab"
    assert chat.stored() == {} and page.run("document.getElementById('error').getAttribute('role')") == "alert"
    page.key("Enter")
    page.wait(f"document.querySelector('{ANSWER}')")
    assert page.run("document.getElementById('error').hidden")


def test_tokens_have_their_alternatives_under_the_pointer_and_by_keys(chat: Chat) -> None:
    page = chat.page
    page.run("document.getElementById('logprobs').click()")
    chat.ask("ab")
    page.click(".turn.assistant button", "Tokens")
    tokens = page.run("[...document.querySelectorAll('[role=option]')].map((each) => each.getAttribute('aria-label'))")
    assert len(tokens) >= 1 and all(token.endswith("%") for token in tokens)
    assert page.run("document.querySelectorAll('[role=option][tabindex=\"0\"]').length") == 1
    page.run("document.querySelector('[role=option]').focus()")
    for key, place in (("ArrowRight", 1), ("End", len(tokens) - 1), ("Home", 0)):
        page.key(key)
        place = min(place, len(tokens) - 1)
        assert page.run("[...document.querySelectorAll('[role=option]')].indexOf(document.activeElement)") == place
    assert page.run("document.getElementById(document.activeElement.getAttribute('aria-describedby')) !== null")
    shares = page.run("[...document.querySelectorAll('#tip .share')].map((each) => each.textContent)")
    assert len(shares) >= 8 and page.run("document.querySelectorAll('#tip .chosen').length") == 1
    page.key("Escape")
    assert page.run("document.getElementById('tip').hidden")
    page.hover("[role=option]")
    page.wait("!document.getElementById('tip').hidden")
    page.click(".turn.assistant button", "Tokens")
    assert page.run("document.querySelectorAll('[role=option]').length") == 0 and "perplexity" in chat.text(
        ".note:not(:empty)"
    )


def test_a_vote_becomes_a_row_that_dpo_reads(chat: Chat) -> None:
    page = chat.page
    page.click("#open-compare")
    page.run("document.getElementById('compare-on').click()")
    for side, temperature in enumerate("02"):
        chat.set(f"#side-{side} input[max='2']", temperature)
        chat.set(f"#side-{side} label:last-child input", "3")
    page.key("Escape")
    chat.write("ab")
    page.wait("document.querySelectorAll('.vote button').length === 4")
    names = page.run("[...document.querySelectorAll('.pair .side-name')].map((each) => each.textContent)")
    answers = chat.turns()[1:]
    assert names == ["Answer A", "Answer B"] and "temperature" not in chat.text(".pair")  # blind
    page.click(".vote button", "B is better")
    page.wait("document.querySelector('.preferred')")
    told = chat.text(".sides")
    assert "temperature 0 ·" in told and "temperature 2 ·" in told
    page.click("#open-data")
    page.click("#save-votes")
    file = chat.downloaded()
    (pair,) = read_preferences([str(file)])
    by = json.loads(file.read_text(encoding="utf-8"))["chosen_by"]
    assert by.startswith("tiny, temperature ") and by in chat.text(".preferred .note").replace(" · ", ", ")
    assert [turn.content for turn in pair.prompt] == ["ab"]
    assert [pair.rejected[0].content, pair.chosen[0].content] == answers
    page.key("Escape")
    page.click(".vote button", "Change")
    page.click(".vote button", "Both are good")
    assert chat.stored("votes")["lit_llm.votes"][0]["row"] is None
    page.run("document.getElementById('compare-on').click()")
    chat.ask("c")
    assert (
        page.run("document.querySelector('.pair')") is None and chat.text(".turn.assistant .versions span") == "1 of 2"
    )


def test_files_of_strangers_are_words_and_come_out_for_sft(chat: Chat, tmp_path: Path) -> None:
    page = chat.page
    file = tmp_path / "foreign.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in FOREIGN) + "\n{broken\n", encoding="utf-8")
    page.click("#open-data")
    page.upload("#file", file)
    page.wait("document.querySelectorAll('#notes li').length >= 2")
    assert "2 conversations read" in chat.text("#notes") and "line 3" in chat.text("#notes")
    page.click("#save-all")
    conversations = read_conversations([str(chat.downloaded())])
    assert [turn.content for turn in conversations[0].messages] == [turn["content"] for turn in FOREIGN[0]["messages"]]
    page.key("Escape")
    assert page.run("[window.ran, ({}).polluted]") == [None, None]
    assert page.run("document.querySelectorAll('#turns :is(img, script, iframe, a)').length") == 0
    assert page.run("document.getElementById('system').value") == "<b>S</b>"
    words = "[...document.querySelectorAll('.turn > .body > :first-child')]"
    assert page.run(f"{words}.map((each) => getComputedStyle(each).direction)") == ["ltr", "ltr", "rtl", "rtl"]
    for width in (360, 800, 1400):
        page.look(width)
        both = "[document.documentElement, document.getElementById('scroller')]"
        assert page.run(f"{both}.every((each) => each.scrollWidth <= each.clientWidth)"), width
    page.click("#open-data")
    page.click("#erase-all")
    chat.agree()
    page.wait("document.querySelectorAll('.turn').length === 0")
    assert chat.stored("") == {} and page.run("sessionStorage.length") == 0


LONG = """
(async () => {
  const { add, newConversation, plainOf } = await import("/page/tree.mjs"), talk = newConversation("", 5);
  for (let n = 0, id = 0; n < 1000; n += 1) id = add(talk, id, n % 2 ? "assistant" : "user", `ab ${n}`);
  localStorage.setItem(`lit_llm.chat.${talk.id}`, JSON.stringify(plainOf(talk)));
})()
"""


def test_a_thousand_turns(chat: Chat) -> None:
    page = chat.page
    page.run(LONG)
    chat.reload()
    page.click("#chats .open")
    page.wait("document.querySelectorAll('.turn').length === 1000")
    assert page.run("document.getElementById('to-end').hidden")
    chat.ask("cd")
    page.wait("document.querySelectorAll('.turn').length === 1002")
    assert "without the oldest" in chat.text(".turn:last-child .note")
    page.run("document.getElementById('scroller').scrollTop = 0")
    page.wait("!document.getElementById('to-end').hidden")


FORBIDDEN = """
Object.defineProperty(window, "localStorage", { get() { throw new DOMException("no", "SecurityError"); } });
"""
FULL = """
const put = Storage.prototype.setItem;
Storage.prototype.setItem = function (key, value) {
  if (key.includes(".chat.")) throw new DOMException("no", "QuotaExceededError");
  put.call(this, key, value);
};
"""


@pytest.mark.parametrize(
    ("before", "words"), [(FORBIDDEN, "keep nothing"), (FULL, "no more room")], ids=["forbidden", "full"]
)
def test_a_browser_that_keeps_nothing(chat: Chat, before: str, words: str) -> None:
    page = chat.page
    script = page.before_load(f"if (location.pathname === '/') {{ {before} }}")
    try:
        chat.reload()
        chat.ask("ab")
        assert words in chat.text("#notice-text") and page.run("!document.getElementById('notice').hidden")
        page.click("#new")
        page.click("#chats .open")
        assert chat.turns()[0] == "ab"
        page.click("#notice-close")
        assert page.run("document.getElementById('notice').hidden")
    finally:
        page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)


def test_the_key_is_asked_for_and_kept_until_the_window_is_closed(chat: Chat) -> None:
    page = chat.page
    page.run("sessionStorage.clear()")
    page.goto(chat.url)
    page.wait("!document.getElementById('key-form').hidden")
    assert page.run("document.activeElement.id") == "key" and "asks for an API key" in chat.text("#error")
    for key, said in (("schlüssel😀", "no API key"), ("wrong", "does not accept")):
        chat.set("#key", key)
        page.key("Enter")
        page.wait(f"document.getElementById('error').textContent.includes('{said}')")
    chat.set("#key", "sesame")
    page.key("Enter")
    page.wait("document.getElementById('model').textContent === 'tiny'")
    chat.ask("ab")
    assert "sesame" not in page.run("JSON.stringify(localStorage)")
    chat.reload()
    assert chat.text("#model") == "tiny"


def test_a_phone_and_the_keyboard(chat: Chat) -> None:
    page = chat.page
    chat.ask("ab")
    page.look(360, 700)
    assert page.run("getComputedStyle(document.getElementById('sidebar')).visibility") == "hidden"
    page.click("#open-sidebar")
    assert page.run("document.activeElement.id === 'new' && document.getElementById('page').inert")
    assert page.run("document.getElementById('open-sidebar').getAttribute('aria-expanded')") == "true"
    page.key("Escape")
    assert page.run("document.activeElement.id === 'open-sidebar' && !document.getElementById('page').inert")
    reached = []
    for _ in range(14):
        page.key("Tab")
        reached.append(page.run("document.activeElement.id || document.activeElement.textContent"))
    assert {"open-compare", "open-settings", "scroller", "message", "Copy", "Edit", "Regenerate"} <= set(reached)


def test_two_models_and_calls_of_tools(browser: tuple[Page, Path]) -> None:
    page, folder = browser
    page.look(1200)
    page.problems.clear()

    def script(body: dict[str, Any]) -> str:
        asked.append((body["model"], body.get("temperature"), [turn["role"] for turn in body["messages"]]))
        return f'<tool_call>\n{{"name": "{body["model"]}", "arguments": {{"city": "<b>"}}}}\n</tool_call>'

    asked: list[Any] = []
    models = [entry("one"), {"id": "two", "loaded": False}]
    with serving_page(models, script) as url:
        chat = Chat(page, url, folder)
        chat.open()
        for name, value, event in (("system", "S", "input"), ("choice", "two", "change")):
            field = f"document.getElementById('{name}')"
            page.run(f"{field}.value = '{value}', {field}.dispatchEvent(new Event('{event}'))")
        assert chat.text("#about") == "loaded with the first message"
        models[1] = entry("two", loaded=True)
        chat.ask("q")
        page.wait("document.getElementById('about').textContent === 'context 2,048 · not quantized'")
        assert chat.text(".call figcaption span") == "Tool call: two" and '"city": "<b>"' in chat.text(".call code")
        page.run("document.getElementById('compare-on').click()")
        chat.write("r")
        page.wait("document.querySelectorAll('.vote button').length === 4")
        assert sorted(model for model, _, _ in asked[1:]) == ["one", "two"]
        assert asked[2][2] == ["system", "user", "assistant", "user"]
    assert page.problems == []
