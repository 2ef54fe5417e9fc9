"""Signals during training: the first one asks, the second one stops."""

import io
import logging
import signal
import threading

import pytest

from src.train.interrupt import Interrupt
from src.utils import log

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_first_signal_asks_and_the_second_stops(first, second):
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interrupt() as interrupt:
        assert not interrupt.is_requested
        signal.raise_signal(first)
        assert interrupt.is_requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_handlers_are_put_back_after_an_error():
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(RuntimeError, match="stop"), Interrupt():
        raise RuntimeError("stop")
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("first", SIGNALS)
def test_a_terminal_that_is_closed_asks_and_never_stops(first):
    """SIGHUP comes twice then: from the kernel, and from the shell."""
    with Interrupt() as interrupt:
        signal.raise_signal(first)
        assert interrupt.is_requested
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGHUP)
        assert interrupt.is_requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(first)


@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGHUP])
def test_a_signal_that_is_ignored_stays_ignored(number):
    """As SIGHUP is under nohup, and SIGINT in the background of a script."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(number)
            assert not interrupt.is_requested
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGHUP])
def test_once_all_is_saved_the_first_signal_stops(number):
    with Interrupt() as interrupt:
        interrupt.exits_at_once = True
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        signal.raise_signal(signal.SIGHUP)  # while it ends


def test_another_thread_leaves_the_handlers_alone():
    before = [signal.getsignal(number) for number in SIGNALS]
    seen = []

    def work():
        with Interrupt() as interrupt:
            seen.append(interrupt.is_requested)
            seen.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False, *before]


def test_a_signal_in_the_middle_of_a_log_line_is_logged_after_it(capsys):
    """Python refuses a second write to a stream within a write by the same thread."""
    written, is_advised = bytearray(), threading.Event()

    class Terminal(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            written.extend(data)
            if bytes(data) == b"a line\n":
                signal.raise_signal(signal.SIGINT)
            if b"stopping" in written:
                is_advised.set()
            return len(data)

    stream = io.TextIOWrapper(io.BufferedWriter(Terminal()), line_buffering=True)
    log.addHandler(logging.StreamHandler(stream))
    log.setLevel(logging.INFO)
    with Interrupt() as interrupt:
        log.info("a line")
        assert is_advised.wait(600)
    assert interrupt.is_requested
    assert written.startswith(b"a line\nstopping after this step")
    assert capsys.readouterr().err == ""
