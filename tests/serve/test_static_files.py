"""The files of the page."""

import re
from pathlib import Path

from src.serve.static_files import FOLDER
from tests.serve.clients import refusal

FILES = sorted(path.name for path in FOLDER.iterdir())
MAX_BYTES = 150_000


def test_the_page_is_small():
    assert sum((FOLDER / name).stat().st_size for name in FILES) <= MAX_BYTES


def test_every_file_is_served_as_it_is(client):
    for name in FILES:
        found = client.get("/" if name == "index.html" else f"/static/{name}")
        assert found.content == (FOLDER / name).read_bytes()
        kind = found.headers["content-type"]
        expected = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
        assert kind.partition(";")[0] == expected.get(Path(name).suffix, "text/html")
        assert "script-src 'self'" in found.headers["content-security-policy"]


def test_what_the_files_import_and_link_is_served():
    for name in FILES:
        text = (FOLDER / name).read_text(encoding="utf-8")
        linked = re.findall(r'from "\./(.+?)"', text)
        linked += re.findall(r'(?:src|href)="static/(.+?)"', text)
        assert set(linked) <= set(FILES)
        assert not re.findall(r"(?:src|href|from|import)[=\s(]+[\"'](?:https?:)?//", text)


def test_nothing_is_inserted_as_html():
    for name in FILES:
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
        if name.endswith(".html"):
            assert not re.search(r"<style|<script(?![^>]*src=)| on\w+=| style=", text)


def test_no_other_path_is_opened(client):
    for path in ("/static/", "/static/../app.py", "/static/%2e%2e/app.py", "/static/none.js"):
        refusal(client.get(path), 404)
