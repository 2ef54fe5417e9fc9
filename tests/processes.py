"""Python programs in processes of their own that need not import PyTorch: see `fork_server`.

Importing PyTorch takes seconds of CPU time, more than most of what tests do in a process. Each
process has its own arguments, environment, working folder, streams, signals and exit status, and
none of the project's modules. Tests of what a process imports, or of its start, start Python. If
folders of tests are run, the workers of pytest-xdist are such processes, too.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

try:
    from pexpect import EOF
    from pexpect.fdpexpect import fdspawn
except ImportError:  # on Windows
    EOF = fdspawn = None

__all__ = ["CHECKOUT", "Process", "in_terminal", "needs_fork", "run_python"]

CHECKOUT = Path(__file__).resolve().parents[1]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


# The environment variable with the path of the server that all workers of pytest-xdist share.
_SHARED = "AGI2_TESTS_FORK_SERVER"


@functools.cache
def start_server() -> tuple[str, object]:
    """Start a server, which ends when this process does.

    Returns:
        The path of its socket, and what must be kept as long as it is needed.
    """
    folder = tempfile.TemporaryDirectory()
    path = os.path.join(folder.name, "server")
    ours, theirs = socket.socketpair()
    with theirs, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        descriptors = [theirs.fileno(), listener.fileno()]
        program = CHECKOUT / "tests" / "fork_server.py"
        subprocess.Popen(
            [sys.executable, "-P", str(program), *map(str, descriptors)],
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            start_new_session=True,
        )
    return path, (folder, ours)


def share_server() -> None:
    """Start a server for this process and those that it starts."""
    os.environ[_SHARED] = start_server()[0]


def is_server_shared() -> bool:
    """Whether `share_server` was called in this process, or in one that has started it."""
    return _SHARED in os.environ


def _connect() -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ.get(_SHARED) or start_server()[0])
    return connection


class Process:
    """A running program.

    Args:
        *arguments: `-c` and a program, or a script; then its own arguments.
        streams: descriptors of standard input, output and error.
        folder: the working folder.
        environment: the environment; by default this process's.
        is_terminal: whether standard input is the process's controlling terminal.
        ignores_sigint: whether Ctrl-C is ignored, as shells set it for what ends in `&`.
    """

    def __init__(
        self,
        *arguments,
        streams,
        folder=CHECKOUT,
        environment=None,
        is_terminal=False,
        ignores_sigint=False,
    ):
        request = {
            "arguments": [*map(str, arguments)],
            "folder": str(folder),
            "environment": dict(os.environ if environment is None else environment),
            "is_terminal": is_terminal,
            "ignores_sigint": ignores_sigint,
            "parent": os.getpid(),
        }
        status, theirs = socket.socketpair()
        with theirs, _connect() as server, tempfile.TemporaryFile("w+", encoding="utf-8") as file:
            json.dump(request, file)
            file.seek(0)
            socket.send_fds(server, [b"*"], [file.fileno(), *streams, theirs.fileno()])
        self._status = status.makefile("r")
        self._socket = status
        self.pid = int(self._status.readline())
        self.status: int | None = None

    def kill(self, number: int) -> None:
        """Send a signal to the process, which has not ended."""
        os.kill(self.pid, number)

    def wait(self, timeout: float | None = 600) -> int:
        """Wait until the process has ended; return its exit status."""
        self._socket.settimeout(timeout)
        if self.status is None:
            self.status = int(self._status.readline())
        return self.status


def run_python(*arguments, text="", timeout=600, **options) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; return its status and what it has written.

    Args:
        *arguments: see `Process`.
        text: its standard input.
        timeout: seconds after which `TimeoutError` is raised.
        **options: see `Process`.
    """
    with contextlib.ExitStack() as stack:
        # Files, unlike pipes, need not be read while the program runs.
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        files[0].write(text.encode())
        files[0].seek(0)
        process = Process(*arguments, streams=[file.fileno() for file in files], **options)
        status = process.wait(timeout)
        for file in files[1:]:
            file.seek(0)
        out, err = (file.read().decode() for file in files[1:])
    return subprocess.CompletedProcess(arguments, status, out, err)


@contextlib.contextmanager
def in_terminal(*arguments, timeout=600, **options) -> Iterator:
    """Run a program in a pseudo-terminal; yield pexpect's object for it, and the `Process`.

    At the end, wait until it has ended; after an error, kill it.

    Args:
        *arguments: see `Process`.
        timeout: seconds to wait for an expected output.
        **options: see `Process`.
    """
    import termios

    ours, theirs = os.openpty()
    attributes = termios.tcgetattr(theirs)
    attributes[3] &= ~termios.ECHO
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    termios.tcsetwinsize(theirs, (24, 80))
    process = Process(*arguments, streams=[theirs] * 3, is_terminal=True, **options)
    os.close(theirs)
    terminal = fdspawn(ours, encoding="utf-8", timeout=timeout)
    try:
        yield terminal, process
        terminal.expect(EOF)
    except BaseException:
        process.kill(signal.SIGKILL)
        raise
    finally:
        process.wait()
        terminal.close()


if __name__ == "__main__":  # in place of `python -u -c PROGRAM`, as pytest-xdist starts a worker
    sys.exit(Process(*sys.argv[2:], streams=[0, 1, 2], folder=os.getcwd()).wait(None) & 0xFF)
