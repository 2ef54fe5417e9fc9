"""The server of the tests of downloads."""

import threading
from http.server import ThreadingHTTPServer

import pytest

from tests.data.library import BOOK, Library


@pytest.fixture
def library(tmp_path, monkeypatch):
    """The address of a server on this machine; downloads go to `cache`, which is not there yet."""
    monkeypatch.setenv("AGI2_CACHE", str(tmp_path / "cache" / "deep"))
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    Library.content, Library.asked, Library.logins = BOOK.encode(), (), ()
    Library.headers_to_send, Library.redirect = {}, ""
    with ThreadingHTTPServer(("127.0.0.1", 0), Library) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
