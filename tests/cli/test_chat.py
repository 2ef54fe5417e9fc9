import io
import os
import re
import signal
import sys
import threading

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from src.cli.chat import HELP, chat
from src.console import console
from src.errors import AGI2Error
from src.interactive import InteractivePrompt
from tests.processes import in_terminal, needs_fork, run_python
from tests.test_interactive import VOCABULARY, interrupt_after, says
from tests.tiny_models import byte_tokenizer

CTRL_C, CTRL_D, CTRL_Z, UP, LEFT, ENTER = "\x03", "\x04", "\x1a", "\x1b[A", "\x1b[D", "\r"
READY = r"\x1b\[\?2004h[^>]*>"  # the prompt takes over the terminal, then shows itself


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def greeter(tokenizer) -> InteractivePrompt:
    """Always answers `Hello.` to a message of two letters, as long as it remembers nothing."""
    return says(tokenizer, "Hello.\n\n", "Hi")


def test_lines_from_a_pipe_are_answered_until_it_ends(tokenizer, monkeypatch, capsys):
    prompt = greeter(tokenizer)
    lines = "Hi\n\n  \n/clear\nYo\n/help\n/[what]\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    chat(prompt)
    out, err = capsys.readouterr()
    assert out == "Hello.\nHello.\n"
    assert err.splitlines() == [
        "the conversation is forgotten",
        *HELP.splitlines(),
        "unknown command /[what]; /help lists them",
    ]
    assert prompt.history == ["Yo", "Hello."]


def test_quit_leaves_before_the_input_ends(tokenizer, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("/quit \nHi\n"))
    chat(greeter(tokenizer))
    assert capsys.readouterr().out == ""


def test_ctrl_c_stops_a_reply_and_keeps_it(tokenizer, monkeypatch, capsys):
    prompt = greeter(tokenizer)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n/help\n"))
    handle = interrupt_after(prompt.model, 4)
    chat(prompt)
    handle.remove()
    out, err = capsys.readouterr()
    assert out == "Hel\n"
    assert err.splitlines() == f" [stopped]{HELP}".splitlines()
    assert prompt.history == ["Hi", "Hel"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def chat_with_keys(prompt: InteractivePrompt, keys: str, monkeypatch) -> None:
    """Chat as in a terminal, with keys that were typed ahead."""
    monkeypatch.setattr(sys, "stdin", Terminal())
    with create_pipe_input() as keyboard:
        keyboard.send_text(keys)
        with create_app_session(input=keyboard, output=DummyOutput()):
            chat(prompt)


def test_a_terminal_has_line_editing_and_history_and_survives_ctrl_c(
    tokenizer, monkeypatch, capsys, tmp_path
):
    monkeypatch.setenv("AGI2_CACHE", str(tmp_path / "new" / "folder"))
    prompt = greeter(tokenizer)
    chat_with_keys(prompt, f"i{LEFT}H{ENTER}dropped{CTRL_C}/help{ENTER}{CTRL_D}", monkeypatch)
    out, err = capsys.readouterr()
    assert out == "Hello.\n"
    assert HELP in err
    assert prompt.history == ["Hi", "Hello."]
    # Another session finds the line again.
    again = greeter(tokenizer)
    chat_with_keys(again, f"{UP}{UP}{ENTER}/quit{ENTER}", monkeypatch)
    assert again.history == ["Hi", "Hello."]


def test_a_terminal_works_where_no_history_can_be_kept(tokenizer, monkeypatch, capsys, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("AGI2_CACHE", str(blocked))
    prompt = greeter(tokenizer)
    chat_with_keys(prompt, f"Hi{ENTER}/clear{ENTER}Yo{ENTER}{CTRL_D}", monkeypatch)
    assert capsys.readouterr().out == "Hello.\nHello.\n"
    assert blocked.read_text() == "not a folder"


def test_a_message_is_edited_where_it_was_typed(tokenizer, monkeypatch, capsys):
    prompt = greeter(tokenizer)
    backspace = "\x7f"
    keys = f"Hi{ENTER}/edit{ENTER}{backspace * 2}Yo{ENTER}/edit{ENTER}x{CTRL_C}/help{ENTER}{CTRL_D}"
    chat_with_keys(prompt, keys, monkeypatch)
    out, err = capsys.readouterr()
    assert out == "Hello.\nHello.\n"
    assert HELP in err
    assert prompt.history == ["Yo", "Hello."]


def test_what_cannot_be_done_in_a_terminal_is_said_and_the_chat_goes_on(
    tokenizer, monkeypatch, capsys
):
    prompt = greeter(tokenizer)
    chat_with_keys(prompt, f"/retry{ENTER}Hi{ENTER}{CTRL_D}", monkeypatch)
    out, err = capsys.readouterr()
    assert out == "Hello.\n"
    assert "error: there is no message to reply to\n" in err


def test_what_cannot_be_done_in_a_pipe_ends_it(tokenizer, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("/retry\nHi\n"))
    with pytest.raises(AGI2Error, match=r"^there is no message to reply to$"):
        chat(greeter(tokenizer))


@pytest.fixture
def terminal(monkeypatch):
    """Standard output and standard error look like a terminal, of a width that can be set."""

    def of_width(columns):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(type(console), "is_terminal", property(lambda self: True))
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")

    return of_width


FIGURES = r"\[8 tokens, [\d,]+ tok/s, context 12 of 12\]"


@pytest.mark.parametrize("shows_stats", [True, False])
def test_figures_of_each_reply_are_shown_in_a_terminal_unless_turned_off(
    tokenizer, monkeypatch, capsys, terminal, shows_stats
):
    terminal(80)
    prompt = greeter(tokenizer)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
    chat(prompt, shows_stats=shows_stats)
    err = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().err)
    assert bool(re.fullmatch(FIGURES + "\n", err)) == shows_stats
    assert bool(err) == shows_stats


def test_a_reply_that_was_cut_is_said_to_be(tokenizer, monkeypatch, capsys, terminal):
    terminal(80)
    prompt = greeter(tokenizer)
    prompt.configure(max_length=1)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
    chat(prompt)
    out, err = capsys.readouterr()
    assert out == "H\n"
    assert "[1 token, " in err
    assert ", cut at max_length]" in err


@pytest.mark.parametrize("columns", [80, 140])
def test_two_models_answer_side_by_side_where_the_terminal_is_wide(
    tokenizer, monkeypatch, capsys, terminal, columns
):
    terminal(columns)
    prompts = {"a": greeter(tokenizer), "b": greeter(tokenizer)}
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
    chat(prompts)
    out, err = capsys.readouterr()
    if columns == 80:
        assert out == "--- a ---\nHello.\n--- b ---\nHello.\n"
    else:
        assert out == f"{'--- a ---':<68} | --- b ---\n{'Hello.':<68} | Hello.\n"
    assert "[a: 8 tokens, " in err
    assert "[b: 8 tokens, " in err
    assert [prompt.history for prompt in prompts.values()] == [["Hi", "Hello."]] * 2


def test_an_error_of_one_model_does_not_keep_the_other_from_its_reply(
    tokenizer, monkeypatch, capsys, terminal
):
    terminal(140)
    prompts = {"a": greeter(tokenizer), "b": greeter(tokenizer)}
    prompts["b"].send_message("Hi")
    monkeypatch.setattr(sys, "stdin", Terminal())
    with create_pipe_input() as keyboard:
        keyboard.send_text(f"/edit Yo{ENTER}/undo{ENTER}/retry{ENTER}{CTRL_D}")
        with create_app_session(input=keyboard, output=DummyOutput()):
            chat(prompts)
    err = capsys.readouterr().err
    assert "a: error: there is no message to edit" in err
    assert prompts["b"].history == []
    assert "b: error: there is no message to reply to" in err


@pytest.mark.parametrize("columns", [80, 140])
def test_ctrl_c_stops_both_models(tokenizer, monkeypatch, capsys, terminal, columns):
    terminal(columns)
    prompts = {"a": greeter(tokenizer), "b": greeter(tokenizer)}
    handle = interrupt_after(prompts["a"].model, 4)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
    chat(prompts)
    handle.remove()
    assert capsys.readouterr().err.endswith(" [stopped]")
    assert prompts["a"].history == ["Hi", "Hel"]
    assert prompts["b"].history == ([] if columns == 80 else ["Hi", "Hel"])


# A chat whose replies are known: in a process of its own, as a user starts it.
PROGRAM = f"""
import sys
from tests.tiny_models import reciting_model
from src.cli.chat import chat
from src.interactive import InteractivePrompt
from src.tokenizer import BasicTokenizer, BPETokenizer

tokenizer = BPETokenizer({VOCABULARY})
tokenizer.fit([""])
endless = reciting_model({VOCABULARY}, tokenizer.encode("ha") * 40)
chat(InteractivePrompt(endless, 60, tokenizer, temperature=0, max_length=int(sys.argv[1])))
"""


@pytest.fixture
def environment(tmp_path):
    """The environment of a chat in a process of its own."""
    return {
        **os.environ,
        "PYTHONIOENCODING": "utf-8",
        "AGI2_CACHE": str(tmp_path / "cache"),
        "PROMPT_TOOLKIT_NO_CPR": "1",  # nobody answers where the cursor is
        "TERM": "xterm",
    }


@needs_fork
def test_the_chat_works_in_a_pipe_and_ends_with_its_input(environment):
    done = run_python("-c", PROGRAM, 4, text="Hi\nπ😀\n/help\n", environment=environment)
    assert done.returncode == 0, done.stderr
    assert [set(line) for line in done.stdout.splitlines()] == [{"h", "a"}] * 2
    assert [len(line) for line in done.stdout.splitlines()] == [4, 4]
    assert done.stderr.splitlines() == HELP.splitlines()


@needs_fork
@pytest.mark.parametrize("ignored", [False, True], ids=["usual", "started-in-the-background"])
def test_the_chat_works_in_a_real_terminal(environment, ignored):
    """Also where a shell has set Ctrl-C to be ignored, as it does for what ends in `&`."""
    options = {"environment": environment, "ignores_sigint": ignored}
    with in_terminal("-c", PROGRAM, 10**9, **options) as (terminal, process):
        terminal.expect("Write a message")
        terminal.expect(READY)
        terminal.send(f"/hlp{LEFT}{LEFT}e{ENTER}")  # edited into /help
        terminal.expect("forget the conversation")
        terminal.expect(READY)
        terminal.send(f"/cont\t{ENTER}")  # completed
        terminal.expect("context: 0 tokens")
        terminal.expect(READY)
        terminal.send("\x1b[200~pasted\nlines\x1b[201~")
        terminal.send(f"\x1b{ENTER}H{ENTER}")  # Alt-Enter: a new line
        terminal.expect("(ha|ah){20}")
        terminal.send(CTRL_C)  # in the middle of a reply that would go on for ever
        terminal.expect(r"\[stopped\]")
        terminal.expect(READY)
        terminal.send(f"/clear{ENTER}")
        terminal.expect("the conversation is forgotten")
        terminal.expect(READY)
        terminal.send(f"{UP}{UP}{UP}{UP}{UP}{UP}{ENTER}")  # /clear, three lines, /context, /help
        terminal.expect("forget the conversation")
        terminal.expect(READY)
        terminal.send(CTRL_C)  # at the prompt: a new line
        terminal.expect(READY)
        terminal.send(CTRL_D)
    assert process.status == 0


@needs_fork
def test_the_chat_works_in_a_terminal_without_cursor_control(environment):
    shown = io.StringIO()
    options = {"environment": {**environment, "TERM": "dumb"}}
    with in_terminal("-c", PROGRAM, 10**9, **options) as (terminal, process):
        terminal.logfile_read = shown
        terminal.expect("Write a message")
        terminal.expect("> ")
        terminal.send(f"Hi{ENTER}")
        terminal.expect("(ha|ah){20}")
        terminal.send(CTRL_C)
        terminal.expect(r"\[stopped\]")
        terminal.send(f"/help{ENTER}")
        terminal.expect("forget the conversation")
        # Such a prompt is shown before it reads keys: until then, Ctrl-D is lost.
        terminal.send(f"/quit{ENTER}")
    assert process.status == 0
    assert "\x1b" not in shown.getvalue()


# What a shell does for its only job. The job is a fork, so that it need not import PyTorch.
SHELL = f"""
import os, signal, sys, termios

signal.signal(signal.SIGTTOU, signal.SIG_IGN)
modes = termios.tcgetattr(0)
if job := os.fork():
    while True:
        _, status = os.waitpid(job, os.WUNTRACED)
        os.tcsetpgrp(0, os.getpgrp())
        termios.tcsetattr(0, termios.TCSADRAIN, modes)
        if not os.WIFSTOPPED(status):
            sys.exit(os.waitstatus_to_exitcode(status))
        print("Stopped", flush=True)
        assert input() == "fg"
        os.tcsetpgrp(0, job)
        os.killpg(job, signal.SIGCONT)
os.setpgid(0, 0)
os.tcsetpgrp(0, os.getpid())
signal.signal(signal.SIGTTOU, signal.SIG_DFL)
{PROGRAM}
"""


@needs_fork
def test_ctrl_z_suspends_the_chat_and_fg_continues_it(environment):
    with in_terminal("-c", SHELL, 10**9, environment=environment) as (terminal, process):
        terminal.expect("Write a message")
        terminal.expect(READY)
        for typed, shown in (("H", "H"), (f"i{ENTER}", "(ha|ah){20}")):  # at the prompt; a reply
            terminal.send(typed)
            terminal.expect(shown)
            terminal.send(CTRL_Z)
            terminal.expect("Stopped")
            terminal.sendline("fg")
            terminal.expect(shown)
        terminal.send(CTRL_C)
        terminal.expect(r"\[stopped\]")
        terminal.expect(READY)
        terminal.send(CTRL_D)
    assert process.status == 0


def test_ctrl_c_ends_a_reply_also_where_its_exception_is_lost(tokenizer, monkeypatch, capsys):
    """Python drops an exception that is raised in a `__del__`."""

    class Dropped:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    prompt = greeter(tokenizer)
    reads = []

    def press(*_):
        reads.append(1)
        if len(reads) == 3:
            Dropped()

    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
    handle = prompt.model.register_forward_pre_hook(press)
    chat(prompt)
    handle.remove()
    assert [each.exc_type for each in lost] == [KeyboardInterrupt]
    assert tuple(capsys.readouterr()) == ("He\n", " [stopped]")
    assert len(reads) == 3


def test_ctrl_c_pressed_again_and_again_leaves_the_chat_as_it_is(tokenizer, monkeypatch, capsys):
    prompt = greeter(tokenizer)
    handle = prompt.model.register_forward_pre_hook(lambda *_: signal.raise_signal(signal.SIGINT))
    stop = prompt.stream_message

    def pressed_at_the_end(message):
        try:
            yield from stop(message)
        finally:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(prompt, "stream_message", pressed_at_the_end)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\nYo\n"))
    chat(prompt)
    handle.remove()
    assert tuple(capsys.readouterr()) == ("\n\n", " [stopped] [stopped]")


@pytest.mark.parametrize("then", ["", "/help\r"])
def test_ctrl_c_right_after_a_line_stops_its_reply(then, tokenizer, monkeypatch, capsys):
    """It comes while the prompt is being left, and not to the reply."""
    prompt = greeter(tokenizer)
    chat_with_keys(prompt, f"Hi{ENTER}{CTRL_C}{then}{CTRL_D}", monkeypatch)
    out, err = capsys.readouterr()
    assert out == "\n"
    assert " [stopped]" in err
    assert (HELP in err) == bool(then)


def test_ctrl_c_between_the_lines_of_a_pipe_ends_the_chat(tokenizer, monkeypatch):
    def lines():
        yield "/help\n"
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)

    class Pipe:
        isatty = staticmethod(lambda: False)
        __iter__ = staticmethod(lines)

    monkeypatch.setattr(sys, "stdin", Pipe())
    with pytest.raises(KeyboardInterrupt):
        chat(greeter(tokenizer))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_at_the_prompt_drops_the_line(tokenizer, monkeypatch, capsys):
    """As another process sends it: no key."""
    prompt = greeter(tokenizer)
    monkeypatch.setattr(sys, "stdin", Terminal())
    with create_pipe_input() as keyboard:
        read = keyboard.read_keys

        def read_keys():
            keys = read()
            if [each.data for each in keys] == list("dropped"):
                signal.raise_signal(signal.SIGINT)
                keyboard.send_text(f"Hi{ENTER}{CTRL_D}")
            return keys

        monkeypatch.setattr(keyboard, "read_keys", read_keys)
        keyboard.send_text("dropped")
        with create_app_session(input=keyboard, output=DummyOutput()):
            chat(prompt)
    assert prompt.history == ["Hi", "Hello."]
    assert capsys.readouterr().out == "Hello.\n"


def test_a_chat_in_another_thread_leaves_the_signals_alone(tokenizer, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=chat, args=(greeter(tokenizer),))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().out == "Hello.\n"


RECITER = """
import sys
from tests.tiny_models import reciting_model
from src.cli.chat import chat
from src.interactive import InteractivePrompt
from src.tokenizer import BPETokenizer

tokenizer = BPETokenizer(257)
tokenizer.fit([""])
script = tokenizer.encode("\\x1b]0;owned\\x07\\x9b2J")
model = reciting_model(257, [0, 0, 0, *script, *[tokenizer.end_of_text] * 20])
chat(InteractivePrompt(model, 20, tokenizer, temperature=0, max_length=len(script)))
"""


@needs_fork
def test_escape_codes_of_a_reply_or_a_command_reach_no_terminal_and_a_pipe_as_they_are(environment):
    piped = run_python("-c", RECITER, text="Hi\n/x\x1b[2J\n", environment=environment)
    assert "\x1b]0;owned\x07\x9b2J" in piped.stdout, piped
    assert piped.stderr.startswith(r"unknown command /x\x1b[2J")
    with in_terminal("-c", RECITER, environment=environment) as (terminal, _):
        terminal.expect(READY)
        terminal.send(f"Hi{ENTER}")
        terminal.expect_exact(r"\x1b]0;owned\x07\x9b2J")
        terminal.expect(READY)
        terminal.send(CTRL_D)
