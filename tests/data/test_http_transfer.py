import re
import socket
import threading
import urllib.request

import pytest

from src.data import http_transfer
from src.data.downloads import download
from src.errors import AGI2Error
from tests.data.library import Library, cached_files, read


def test_what_is_wrong_with_an_answer_is_said(library, monkeypatch):
    Library.headers_to_send = {"Transfer-Encoding": "chunked", "Content-Length": None}
    Library.content = b"5\r\nte"
    with pytest.raises(AGI2Error, match=r"\(the connection closed before the end"):
        download(f"{library}/a.txt")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(http_transfer, "_SOCKET_TIMEOUT", 0.2)
        with pytest.raises(AGI2Error, match=r"\(no byte for 0 s\)"):  # nothing accepts it
            download(f"http://127.0.0.1:{server.getsockname()[1]}/a.txt")
        server.accept()[0].close()
        monkeypatch.setattr(http_transfer, "_SOCKET_TIMEOUT", 30)
        answer = threading.Thread(target=lambda: server.accept()[0].sendall(b"220 ready\r\n"))
        answer.start()
        with pytest.raises(AGI2Error, match=r"\(the answer is not HTTP\)"):
            download(f"http://127.0.0.1:{server.getsockname()[1]}/a.txt")
        answer.join()


@pytest.mark.parametrize("length", [None, "3"])
def test_a_size_is_bounded_whatever_the_header_says(library, tmp_path, length):
    Library.content, Library.headers_to_send = b"a" * 300_000, {"Content-Length": length}
    if length is None:
        with pytest.raises(AGI2Error, match=r"it is larger than 100\.0 KB"):
            download(f"{library}/a.txt", max_bytes=100_000)
    else:
        with pytest.raises(AGI2Error, match=r"more than the 3 bytes"):
            download(f"{library}/a.txt", max_bytes=100_000)
    assert not cached_files(tmp_path)


def test_a_server_that_drips_is_given_up_at_the_deadline(library, tmp_path):
    Library.headers_to_send = {"Content-Length": None}
    with pytest.raises(AGI2Error, match=r"it takes longer than 1 s\); fetch it by"):
        download(f"{library}/slow.txt", deadline=0.7)
    assert not cached_files(tmp_path)
    assert not any(path.name.startswith(".") for path in (tmp_path / "cache").rglob("*"))


def test_redirects_are_followed_a_few_times(library):
    Library.redirect = "/book.txt"
    assert read(f"{library}/redirect.txt") == ["Call me Ishmael.\n"]
    Library.redirect = "/redirect-again.txt"
    with pytest.raises(AGI2Error, match=r"\(302 more than 5 redirects, or one to itself: Found\)"):
        download(f"{library}/redirect-again.txt")
    assert len(Library.asked) < 12


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "data:,text"])
def test_redirects_away_from_the_web_are_refused(library, tmp_path, target):
    Library.redirect = target
    scheme = target.split(":")[0]
    with pytest.raises(
        AGI2Error, match=f"it redirects from http: to {scheme}:|'{scheme}:.*not allowed"
    ):
        download(f"{library}/redirect.txt")
    assert not cached_files(tmp_path)


@pytest.mark.parametrize("target", ["http://b/", "file:///b", "ftp://b/"])
def test_https_is_left_for_nothing_else(target):
    request = urllib.request.Request("https://a/")
    with pytest.raises(http_transfer.RejectedResponse, match="it redirects from https:"):
        http_transfer._Redirects().redirect_request(request, None, 302, "", {}, target)
    followed = http_transfer._Redirects().redirect_request(request, None, 302, "", {}, "https://b/")
    assert followed.full_url == "https://b/"


def test_a_login_is_sent_to_its_server_alone_and_never_shown(library, tmp_path, caplog):
    url = library.replace("://", "://me:s%65cret@")
    Library.redirect = "/book.txt"
    with caplog.at_level("INFO", "agi2"):
        download(f"{url}/redirect.txt?token=hidden")
    assert Library.logins == ("Basic bWU6c2VjcmV0",) * 2
    Library.redirect = library.replace("127.0.0.1", "localhost") + "/book.txt"
    download(f"{url}/redirect.txt?again")
    assert Library.logins[-1] is None
    with pytest.raises(AGI2Error) as caught:
        download(f"{url}/missing.txt?token=hidden")
    names = " ".join(path.name for path in cached_files(tmp_path))
    for said in (caplog.text, str(caught.value), names, download(url).name):
        assert not re.search("cret|hidden|me:", said)
    assert "://***@127.0.0.1" in caplog.text
    assert "?token=***" in caplog.text


def test_an_address_beyond_ascii_is_quoted(library):
    assert read(f"{library}/B\u00e4r 1%20.txt") == ["Call me Ishmael.\n"]
    assert Library.asked == ("/B%C3%A4r%201%20.txt",)


def test_a_redirect_to_another_host_is_logged(library, caplog):
    caplog.set_level("INFO", "agi2")
    Library.redirect = library.replace("127.0.0.1", "localhost") + "/book.txt"
    download(f"{library}/redirect.txt")
    host = library.removeprefix("http://")
    line = f"{host} redirects to {host.replace('127.0.0.1', 'localhost')}"
    assert [each for each in caplog.messages if "redirects" in each] == [line]
    caplog.clear()
    Library.redirect = "/book.txt"
    download(f"{library}/redirect2.txt")
    assert not any("redirects" in each for each in caplog.messages)
    request = urllib.request.Request("https://a/")
    http_transfer._Redirects().redirect_request(request, None, 302, "", {}, "https://me:secret@b/")
    assert caplog.messages[-1] == "a redirects to b"


def test_a_server_that_keeps_the_connection_open_is_not_waited_for(library, monkeypatch):
    monkeypatch.setattr(http_transfer, "_CLOSE_TIMEOUT", 0.01)
    assert read(f"{library}/kept-open.txt") == ["Call me Ishmael.\n"]


def test_a_full_disk_is_said(library):
    def fail(*_):
        raise OSError(28, "No space left on device")

    class Full:
        write = fail

    transfer = http_transfer.Transfer(f"{library}/a.txt", Full(), 10**6)
    with pytest.raises(AGI2Error, match=r"cannot write .*: No space left on device; free some sp"):
        transfer.run(10)
