import re

from src.cli.token_view import print_choices, token_label
from src.generation import Choice
from src.tokenizer import END_OF_TURN, ROLE_TOKENS, BPETokenizer

TOKENIZER = BPETokenizer(257)
TOKENIZER.fit([""])
HALF = TOKENIZER.encode("é")[0]
(A,) = TOKENIZER.encode("a")
CHOICES = [
    Choice(A, "a", 0.75, [(TOKENIZER.end_of_text, 0.2), (HALF, 0.0312)]),
    Choice(HALF, "", 0.3, []),
    Choice(A, "[red]é\n", 0.004, [(A, 0.5)]),
]


def test_in_a_pipe_the_numbers_can_be_read(capsys):
    print_choices("Call me ", CHOICES, TOKENIZER)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out == (
        "Call me a[red]é\n\n\n"
        "probability  token           alternatives\n"
        "      75.0%  'a'             end of text 20.0%  b'\\xc3' 3.1%\n"
        "      30.0%  b'\\xc3'       \n"
        "       0.4%  '[red]é\\n'      'a' 50.0%\n\n"
    )


def test_in_a_terminal_each_token_has_its_probabilitys_colour(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    print_choices("Call me ", CHOICES, TOKENIZER)
    out = capsys.readouterr().out
    assert out.startswith("Call me \x1b[32ma\x1b[0m\x1b[31m[red]é")
    colours = re.findall(r"\x1b\[(\d+)m +([\d.]+)%", out)
    assert colours == [("32", "75.0"), ("36", "30.0"), ("31", "0.4")]
    legend = re.findall(r"\x1b\[(\d+)m +from (\d+)%", out)
    assert legend == [("32", "50"), ("36", "20"), ("33", "5"), ("35", "1"), ("31", "0")]


def test_without_colours_there_is_no_legend_of_them(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    print_choices("Call me ", CHOICES, TOKENIZER)
    assert "probability  token           alternatives\n" in capsys.readouterr().out


def test_special_tokens_are_shown_by_their_names():
    tokenizer = BPETokenizer(261, special_tokens=[*ROLE_TOKENS.values(), END_OF_TURN])
    tokenizer.fit([""])
    special = tokenizer.special_tokens
    names = [END_OF_TURN, "<|user|>"]
    assert [token_label(special[name], tokenizer) for name in names] == names
    assert token_label(tokenizer.end_of_text, tokenizer) == "end of text"
