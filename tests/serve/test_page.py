"""The page in a real browser, with a real server process and a model that was trained.

Chromium is Debian's (`apt-get install chromium`), or the one that `AGI2_CHROMIUM` names.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request

import pytest

from src.training import train_from_config
from tests.conftest import CHECKOUT, configurations
from tests.data.chats import messages_lines, random_conversations
from tests.serve.clients import KEY, RealServer, sources, wait_until

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
CHROMIUM = os.environ.get("AGI2_CHROMIUM") or shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
expect = playwright.expect
HOSTILE = '<img src=x onerror="hit=1">'
LONG = {"ignore_eos": True, "max_tokens": 4000}
# For a busy machine; waits end as soon as what they wait for is there.
PATIENCE = 30_000


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with two runs: `whale`, and one with a name that is HTML."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "chats.jsonl").write_bytes(messages_lines(random_conversations(40, seed=3, words=4)))
    make = configurations(folder / "none.txt", folder / "trained")
    chats = {"sources": [], "conversations": [str(folder / "chats.jsonl")]}
    sizes = {"tokenizer": "basic", "model_positions": 128, "model_layer": 2}
    train_from_config(
        make("whale", **chats, **sizes, max_steps=40, eval_interval=20, sample_tokens=8)
    )
    shutil.copytree(folder / "trained" / "whale", folder / "trained" / HOSTILE)
    return folder / "trained"


# The seeds that the server draws are the same in each run of the tests.
SERVER = """
import random, secrets, sys

from src.cli.main import main

secrets.randbelow = random.Random(1).randrange
main(sys.argv[1:])
"""


class Process:
    """A server process on a port of its own, which can be killed and started again."""

    def __init__(self, folder):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._models = [str(folder / "whale"), str(folder / HOSTILE)]
        self.start()

    def start(self):
        command = [sys.executable, "-c", SERVER, "serve", *self._models, "--port", str(self.port)]
        self._process = subprocess.Popen(command, cwd=CHECKOUT, stderr=subprocess.DEVNULL)
        wait_until(lambda: self.is_up() or self._process.poll() is not None, 120)
        assert self._process.poll() is None

    def is_up(self):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=60):
            return True
        return False

    def kill(self):
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def server(trained):
    process = Process(trained)
    yield process
    process.kill()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM)
        yield found
        found.close()


@pytest.fixture
def open_page(browser, server):
    """Open the page in a new profile; at the end, check that no script has failed."""
    contexts, errors = [], []

    def opened(url=None, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(dialog.message))
        page.goto(url or server.url)
        return page

    expect.set_options(timeout=PATIENCE)
    yield opened
    for context in contexts:
        context.close()
    assert not errors


@pytest.fixture
def page(open_page):
    found = open_page(viewport={"width": 1280, "height": 800})
    ready(found)
    return found


def ready(page):
    expect(page.locator("body")).to_have_class("list-open keys-open ready")


def send(page, text):
    page.fill("#message", text)
    page.press("#message", "Enter")


def ended(page):
    expect(page.locator(".streaming")).to_have_count(0)
    expect(page.locator("#send")).to_have_attribute("aria-label", "Send")


def chat(page, text="Hello there"):
    """Send a message; return the reply when it has ended."""
    send(page, text)
    ended(page)
    return replies(page).last


def replies(page):
    return page.locator(".message.assistant")


def text_of(message):
    return message.locator(".text").inner_text()


def sampling(page, **keys):
    for name, value in keys.items():
        field = page.locator(f"#key-{name}")
        if isinstance(value, bool):
            field.set_checked(value)
        else:
            field.fill(str(value))


def test_a_reply_is_streamed_and_is_that_of_the_api(page, server):
    sampling(page, max_tokens=30, ignore_eos=True, temperature=0.7)
    with page.expect_request("**/v1/chat/completions") as found:
        reply = chat(page)
    body = found.value.post_data_json
    assert body["temperature"] == 0.7
    assert "top_p" not in body
    seed = int(reply.get_by_text("seed").inner_text().split()[-1])
    again = page.request.post(
        f"{server.url}/v1/chat/completions",
        data={**body, "stream": False, "stream_options": None, "seed": seed},
    )
    assert text_of(reply).strip() == again.json()["choices"][0]["message"]["content"].strip()
    expect(page.locator("#spoken")).to_contain_text(text_of(reply)[:20])


def test_stop_keeps_what_was_generated_and_continue_adds_to_it(page):
    sampling(page, **LONG)
    send(page, "Hello")
    expect(page.locator(".token").nth(20)).to_be_attached()
    page.keyboard.press("Escape")
    ended(page)
    expect(replies(page)).to_contain_text("Stopped.")
    before = text_of(replies(page))
    sampling(page, max_tokens=5)
    replies(page).get_by_role("button", name="Continue").click()
    ended(page)
    assert text_of(replies(page)).startswith(before)
    expect(replies(page)).to_contain_text("2/2")


READ_IN_TWO = """
async (cut) => {
  const { TokenReader, partsOf } = await import("./static/tokens.js");
  const entries = [[97], [0xe2], [0x98], [0x83], [98]].map((bytes, id) => (
    { token_id: id, bytes, logprob: -1, top_logprobs: [] }
  ));
  const stored = JSON.stringify(new TokenReader().read(entries.slice(0, cut)));
  const tokens = JSON.parse(stored);
  tokens.push(...new TokenReader(tokens).read(entries.slice(cut)));
  return [tokens.map((token) => token.text), partsOf("a☃b", tokens)];
}
"""


def test_tokens_that_end_within_a_character_are_continued(page):
    texts = ["a", "", "", "☃", "b"]
    for cut in range(6):
        assert page.evaluate(READ_IN_TWO, cut) == [texts, texts]


def test_regenerating_and_editing_make_branches(page):
    sampling(page, max_tokens=12, ignore_eos=True)
    first = text_of(chat(page, "One"))
    replies(page).get_by_role("button", name="Regenerate").click()
    ended(page)
    second = text_of(replies(page))
    assert first != second
    replies(page).get_by_role("button", name="Previous branch").press("Enter")
    assert text_of(replies(page)) == first
    page.locator(".message.user").get_by_role("button", name="Edit").click()
    page.get_by_label("Edit the message").fill("Two")
    page.get_by_label("Edit the message").press("Enter")
    ended(page)
    expect(page.locator(".message.user")).to_contain_text("Two")
    page.locator(".message.user").get_by_role("button", name="Previous branch").click()
    expect(page.locator(".message.user .text")).to_have_text("One")
    assert text_of(replies(page)) == first


def test_a_seed_repeats_a_reply(page):
    sampling(page, max_tokens=12, ignore_eos=True)
    first = text_of(chat(page))
    replies(page).get_by_role("button", name="Repeat with this seed").click()
    ended(page)
    expect(replies(page)).to_contain_text("2/2")
    assert text_of(replies(page)) == first
    expect(page.locator("#seed-chip")).to_be_visible()
    page.get_by_role("button", name="Use random seeds again").click()
    expect(page.locator("#seed-chip")).to_be_hidden()


def test_conversations_outlast_a_reload_and_an_export(page, tmp_path):
    sampling(page, max_tokens=8)
    said = text_of(chat(page, "Remember this"))
    page.reload()
    expect(replies(page).locator(".text")).to_have_text(said)
    with page.expect_download() as found:
        page.click("#export")
    found.value.save_as(tmp_path / "kept.json")
    page.get_by_role("button", name="Delete “Remember this”").click()
    page.click("#ask-yes")
    expect(page.locator(".message")).to_have_count(0)
    page.set_input_files("#import-file", tmp_path / "kept.json")
    expect(replies(page).locator(".text")).to_have_text(said)
    broken = json.loads((tmp_path / "kept.json").read_text())
    broken["conversations"][0]["panes"] = [{"model": 1, "tree": {"nodes": {"a": {}}}}]
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    page.set_input_files("#import-file", tmp_path / "broken.json")
    expect(page.locator("#toast")).to_contain_text("1 of 1 conversations in this file are damaged")


def test_a_lost_connection_is_said_and_recovers(page, server):
    sampling(page, **LONG)
    send(page, "Hello")
    expect(page.locator(".token").nth(5)).to_be_attached()
    server.kill()
    ended(page)
    expect(page.locator("#connection")).to_contain_text("Connection lost")
    expect(replies(page)).to_contain_text("The connection was lost.")
    server.start()
    expect(page.locator("#connection")).to_be_hidden()
    sampling(page, max_tokens=5)
    replies(page).get_by_role("button", name="Retry").click()
    ended(page)
    expect(replies(page)).to_contain_text("2/2")
    expect(replies(page)).not_to_contain_text("lost")


def test_two_models_reply_side_by_side(page):
    sampling(page, max_tokens=6, ignore_eos=True)
    page.click("#second")
    chat(page, "Both of you")
    panes = page.locator(".pane")
    expect(panes).to_have_count(2)
    for index, name in enumerate(["whale", HOSTILE]):
        expect(panes.nth(index).locator(".who")).to_have_text(name)
    page.get_by_role("button", name="Close the second model").click()
    page.click("#ask-yes")
    expect(panes).to_have_count(1)


def test_another_token_is_taken_by_keyboard(page):
    sampling(page, max_tokens=10, ignore_eos=True, temperature=0)
    reply = chat(page)
    tokens = reply.locator(".token")
    before = tokens.all_inner_texts()
    reply.locator(".token[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#card")).to_be_visible()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    name = page.locator("#card button:focus").get_attribute("aria-label")
    assert name.startswith("Take “")
    page.keyboard.press("Enter")
    ended(page)
    expect(replies(page)).to_contain_text("2/2")
    after = replies(page).locator(".token").all_inner_texts()
    assert after[:2] == before[:2]
    assert after[2] != before[2]
    tokens.filter(has_text=re.compile(r"\S")).first.hover()  # white space cannot be pointed at
    expect(page.locator("#card")).to_be_visible()


def test_the_lens_and_attention_of_a_token(page):
    sampling(page, max_tokens=6, ignore_eos=True)
    chat(page)
    token = replies(page).locator(".token").nth(3)
    token.focus()
    shown = page.locator("#card .card-head .soft").inner_text()
    page.get_by_role("button", name="Look inside").click()
    rows = page.locator(".lens-table tbody tr")
    expect(rows).to_have_count(3)
    expect(rows.last).to_contain_text(shown)
    page.locator("#attention-head").select_option("1")
    assert page.locator(".attended-token").count() > 5
    page.keyboard.press("Escape")
    expect(page.locator("#inspect")).to_be_hidden()


def test_probabilities_can_be_hidden(page):
    sampling(page, max_tokens=4, ignore_eos=True)
    said = text_of(chat(page))
    page.get_by_role("button", name="Hide probabilities").click()
    expect(page.locator(".token")).to_have_count(0)
    assert text_of(replies(page)) == said


def test_the_notebook_continues_at_the_caret(page):
    page.click("#tab-notebook")
    sampling(page, max_tokens=8, ignore_eos=True)
    area = page.locator("#notebook")
    area.fill("The whale. And so it ends.")
    area.evaluate("area => area.setSelectionRange(9, 9)")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#undo")).to_be_enabled()
    text = area.input_value()
    assert text.startswith("The whale")
    assert text.endswith(". And so it ends.")
    assert len(text) > len("The whale. And so it ends.")
    page.click("#notebook-repeat")
    expect(page.locator("#undo")).to_be_enabled()
    assert area.input_value() == text
    page.click("#notebook-view")
    tokens = page.locator("#notebook-tokens .token")
    assert "".join(tokens.all_inner_texts()) == text[9 : len(text) - len(". And so it ends.")]
    tokens.nth(2).focus()
    page.locator("#card .choices button").first.click()
    expect(page.locator("#undo")).to_be_enabled()
    page.click("#notebook-view")
    assert area.input_value() != text
    page.click("#undo")
    kept = area.input_value()
    page.reload()
    expect(area).to_have_value(kept)


def test_runs_are_shown_live_and_compared(page, trained):
    page.click("#tab-runs")
    rows = page.locator("#runs-body tr")
    expect(rows).to_have_count(2)
    expect(page.locator(".chart").first).to_contain_text("Loss")
    for box in page.locator("#runs-body input").all():
        box.check()
    expect(page.locator("#run-details")).to_contain_text("Results")
    with open(trained / "whale" / "metrics.jsonl", "a", encoding="utf-8") as log:
        log.write(json.dumps({"step": 40, "sample": f"new {HOSTILE}"}) + "\n")
    page.click("#refresh")
    expect(page.locator(".samples").first).to_contain_text(f"new {HOSTILE}")
    expect(page.locator("#runs-body")).to_contain_text("40")


def test_html_in_names_and_texts_stays_text(page):
    page.locator(".pane select").select_option(HOSTILE)
    sampling(page, max_tokens=3)
    page.click("#system-box summary")
    page.fill("#system", HOSTILE)
    chat(page, HOSTILE)
    expect(page.locator(".message.user .text")).to_have_text(HOSTILE)
    expect(page.locator(".entry").first).to_have_text(HOSTILE)
    page.click("#tab-runs")
    expect(page.locator("#runs-body")).to_contain_text(HOSTILE)
    assert page.locator("img").count() == 0
    assert page.evaluate("() => window.hit") is None


def test_the_key_is_asked_for_and_kept_in_the_tab(open_page, trained):
    server = RealServer(sources(trained, "whale"), api_key=KEY)
    try:
        page = open_page(server.url, viewport={"width": 1280, "height": 800})
        page.fill("#key-field", "not-the-key-of-this-server")
        page.keyboard.press("Enter")
        expect(page.locator("#key-note")).to_contain_text("does not accept")
        page.fill("#key-field", KEY)
        page.keyboard.press("Enter")
        ready(page)
        page.reload()
        ready(page)
        sampling(page, max_tokens=3)
        chat(page)
        assert page.evaluate("() => Object.values(localStorage).join()").count(KEY) == 0
    finally:
        server.close()


@pytest.mark.parametrize(("width", "theme"), [(360, "light"), (1280, "dark")])
def test_axe_finds_nothing_and_nothing_overflows(open_page, theme, width):
    page = open_page(viewport={"width": width, "height": 740}, color_scheme=theme)
    expect(page.locator("#key-max_tokens")).to_be_attached()
    page.evaluate(
        "() => localStorage.setItem('agi2.sampling', '{\"max_tokens\":6,\"ignore_eos\":true}')"
    )
    page.reload()
    expect(page.locator("#second")).to_be_visible()
    page.click("#second")
    chat(page)
    found = {"chat": axe.Axe().run(page)}
    page.locator(".token").nth(1).focus()
    found["card"] = axe.Axe().run(page)
    page.get_by_role("button", name="Look inside").click()
    expect(page.locator(".lens-table")).to_be_visible()
    found["inspect"] = axe.Axe().run(page)
    page.keyboard.press("Escape")
    for tab in ("notebook", "runs"):
        page.click(f"#tab-{tab}")
        found[tab] = axe.Axe().run(page)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    problems = {
        name: each.generate_report() for name, each in found.items() if each.violations_count
    }
    assert not problems
