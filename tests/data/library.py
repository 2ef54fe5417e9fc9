"""A server of one book, with bad answers, for the tests of downloads."""

import contextlib
import time
from http.server import BaseHTTPRequestHandler
from typing import ClassVar

from src.data.corpus import read_documents
from tests.data.test_gutenberg import framed

BOOK = framed("Call me Ishmael.")


def read(source):
    return list(read_documents(str(source)))


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


class Library(BaseHTTPRequestHandler):
    """Lends one book, notes who asks, and answers badly where the path says so."""

    content = b""
    asked = ()
    logins = ()
    headers_to_send: ClassVar[dict] = {}
    redirect = ""

    def do_GET(self):
        cls = type(self)
        cls.asked += (self.path,)
        self.close_connection = "kept-open" not in self.path
        cls.logins += (self.headers.get("Authorization"),)
        if "redirect" in self.path:
            self.send_response(302)
            self.send_header("Location", cls.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        status = {"/missing.txt": 404, "/nothing.txt": 204, "/part.txt": 206}
        self.send_response(status.get(self.path.split("?")[0], 200))
        headers = {"Content-Length": str(len(self.content) + 50 * ("broken" in self.path))}
        for name, value in {**headers, **self.headers_to_send}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if "slow" in self.path:
            with contextlib.suppress(OSError):
                for _ in range(600):
                    self.wfile.write(b"a")
                    time.sleep(0.1)
            return
        self.wfile.write(self.content)

    def log_message(self, *_):
        pass


def cached_files(tmp_path):
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
