import functools
import math
import re
from collections import Counter

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from src.errors import AGI2Error
from src.generation import (
    generate_batch,
    generate_beam_text,
    generate_beam_texts,
    generate_choices,
    generate_text,
    generate_tokens,
    stream_text,
)
from src.inference.beam_search import beam_search
from src.inference.model_runner import max_batch_rows
from src.tokenizer import BasicTokenizer, BPETokenizer
from tests.bounds import TINY, assert_within, by_chance, log_softmax_bound
from tests.tiny_models import (
    alphabet,
    in_their_layout,
    random_model,
    reciting_model,
    tiny_model,
    transformers_twin,
)

SCRIPTS = "The cat sat. Ο γάτος κάθισε. 猫は座った。القط جلس. 😀👩‍👩‍👧 नमस्ते"
VOCABULARY = 290


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = BPETokenizer(VOCABULARY)
    tokenizer.fit([SCRIPTS, " the" * 20])
    return tokenizer


@pytest.fixture(scope="module")
def writer():
    """A model of random weights over the tokenizer's vocabulary."""
    return random_model(vocab_size=VOCABULARY, max_seq_len=64)


@pytest.fixture(scope="module")
def exact_writer():
    """The same in float64."""
    return random_model(vocab_size=VOCABULARY, max_seq_len=64).double()


def reciter(tokenizer, text: str, prompt: str, ends: bool = True):
    """A model that continues the prompt with a text."""
    script = [0] * (len(tokenizer.encode(prompt) or [0]) - 1) + tokenizer.encode(text)
    return reciting_model(VOCABULARY, script + [tokenizer.end_of_text] * (8 if ends else 0))


def logits_after(model, tokens) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([list(tokens)]))[0, -1]


# --- tokens ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_greedy_equals_a_plain_loop_without_a_cache(seed):
    model = random_model(seed)
    tokens = [3, 1, 4]
    for _ in range(13):
        tokens.append(int(logits_after(model, tokens).argmax()))
    assert list(generate_tokens(model, [3, 1, 4], 13, temperature=0)) == tokens[3:]


def test_greedy_equals_transformers():
    model = random_model(1, position_embedding="learned")
    twin = transformers_twin(model.config)
    twin.load_state_dict(in_their_layout(model.state_dict()))
    theirs = twin.generate(
        torch.tensor([[5, 6]]), max_new_tokens=14, do_sample=False, eos_token_id=None
    )
    assert list(generate_tokens(model, [5, 6], 14, temperature=0)) == theirs[0, 2:].tolist()


@pytest.mark.parametrize(
    ("positions", "prompt_length"), [(16, 3), (16, 16), (16, 30), (5, 2), (1, 4)]
)
def test_past_the_models_positions_the_window_slides(positions, prompt_length):
    """Once the window is full, its older half is forgotten and the rest read again."""
    model = random_model(5, max_seq_len=positions)
    text = [(7 * i) % 29 for i in range(prompt_length)]
    window = text[-positions:]
    for _ in range(40):
        token = int(logits_after(model, window).argmax())
        text.append(token)
        full = len(window) == positions
        window = text[-max(1, positions // 2) :] if full else [*window, token]
    found = list(generate_tokens(model, text[:prompt_length], 40, temperature=0))
    assert found == text[prompt_length:]


def test_a_seed_repeats_a_text_whatever_else_draws():
    model = random_model(dropout=0.1)
    torch.manual_seed(1)
    first = list(generate_tokens(model, [1], 30, seed=5))
    drawing = []
    torch.manual_seed(2)
    for token in generate_tokens(model, [1], 30, seed=5):
        drawing.append(token)
        torch.rand(3)
    assert drawing == first
    assert list(generate_tokens(model, [1], 30, seed=6)) != first


def test_without_a_seed_each_text_is_new_and_nobody_elses_draws_are_touched():
    model = random_model(std=0.1)
    texts = set()
    for _ in range(3):
        torch.manual_seed(0)
        texts.add(tuple(generate_tokens(model, [1], 30)))
        after = torch.rand(1)
        torch.manual_seed(0)
        assert torch.equal(after, torch.rand(1))
    assert len(texts) == 3


def test_tokens_are_drawn_as_often_as_the_model_says():
    model = random_model(2, vocab_size=4, std=0.5)
    expected = (logits_after(model, [1, 2]) / 1.5).softmax(-1)
    drawn = [next(generate_tokens(model, [1, 2], 1, 1.5, seed=seed)) for seed in range(400)]
    found = torch.bincount(torch.tensor(drawn), minlength=4) / len(drawn)
    assert_within(found, expected, by_chance(expected, len(drawn)))


def test_a_lower_temperature_writes_likelier_text():
    model = random_model(3, std=0.2)

    def surprise(temperature):
        total = 0.0
        for seed in range(10):
            text = [1]
            for token in generate_tokens(model, [1], 12, temperature, seed=seed):
                total -= float(logits_after(model, text).log_softmax(-1)[token])
                text.append(token)
        return total

    assert surprise(0.3) < surprise(1.0) < surprise(3.0)


def test_a_top_k_above_the_vocabulary_means_no_limit():
    model = random_model()
    free, limited = (
        list(generate_tokens(model, [1], 20, top_k=top_k, seed=0)) for top_k in (None, 10**6)
    )
    assert free == limited


def test_top_k_and_top_p_limit_what_is_drawn():
    model = random_model(4, std=0.2)
    greedy = list(generate_tokens(model, [1], 20, temperature=0))
    assert list(generate_tokens(model, [1], 20, 3.0, top_k=1)) == greedy
    assert list(generate_tokens(model, [1], 20, 3.0, top_p=1e-6)) == greedy


def test_the_repetition_penalty_counts_prompt_and_text():
    model = random_model(6, std=0.2)
    text = [3, 4]
    for _ in range(12):
        logits = logits_after(model, text)
        for token in set(text):
            logits[token] = logits[token] / 5 if logits[token] > 0 else logits[token] * 5
        text.append(int(logits.argmax()))
    found = list(generate_tokens(model, [3, 4], 12, temperature=0, repetition_penalty=5.0))
    assert found == text[2:]
    assert found != list(generate_tokens(model, [3, 4], 12, temperature=0))


@given(
    seed=st.integers(0, 99),
    presence=st.sampled_from([0.0, 0.7, -0.5]),
    frequency=st.sampled_from([0.0, 0.4, -0.3]),
    ngram=st.none() | st.integers(1, 3),
    bias=st.dictionaries(st.integers(0, 8), st.floats(-2, 2), max_size=3),
    min_length=st.integers(0, 9),
)
@settings(deadline=None, max_examples=15)
def test_greedy_with_penalties_equals_a_plain_loop(
    seed, presence, frequency, ngram, bias, min_length
):
    """One reading of the whole text for each token, and each rule word for word."""
    model, prompt, length = random_model(seed, vocab_size=9), [3, 4, 3], 12
    text = list(prompt)
    while len(text) < len(prompt) + length:
        scores = logits_after(model, text).tolist()
        counts = Counter(text[len(prompt) :])
        for token in range(9):
            scores[token] += bias.get(token, 0.0) - frequency * counts[token]
            scores[token] -= presence * (token in counts)
            if ngram is not None:
                runs = [text[i : i + ngram] for i in range(len(text) - ngram + 1)]
                if [*text, token][-ngram:] in runs:
                    scores[token] = -math.inf
        if len(text) - len(prompt) < min_length:
            scores[0] = -math.inf
        best = max(range(9), key=scores.__getitem__)
        if best == 0 or scores[best] == -math.inf:
            break
        text.append(best)
    found = generate_tokens(
        model,
        prompt,
        length,
        temperature=0,
        end_token=0,
        presence_penalty=presence,
        frequency_penalty=frequency,
        no_repeat_ngram=ngram,
        logit_bias=bias,
        min_length=min_length,
    )
    assert list(found) == text[len(prompt) :]


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_the_text_ends_where_no_token_is_left(temperature):
    model = random_model(vocab_size=5)
    found = list(generate_tokens(model, [1], 20, temperature, no_repeat_ngram=1))
    assert sorted(found) == [0, 2, 3, 4]


def test_the_end_token_may_not_come_before_the_minimum_length():
    model = reciting_model(9, [0] * 9)
    for shortest in (0, 1, 4):
        found = generate_tokens(model, [1], 8, 0, end_token=0, min_length=shortest)
        assert len(list(found)) == shortest


def test_the_end_token_ends_the_text_and_is_not_part_of_it():
    model = reciting_model(9, [4, 5, 6, 0, 7])
    assert list(generate_tokens(model, [1], 5, temperature=0, end_token=0)) == [4, 5, 6]
    assert list(generate_tokens(model, [1], 5, temperature=0)) == [4, 5, 6, 0, 7]


def test_the_model_is_read_no_more_often_than_needed():
    model = random_model()
    reads = []
    model.register_forward_pre_hook(lambda _, args: reads.append(args[0].shape[1]))
    list(generate_tokens(model, [1, 2, 3], 5))
    assert reads == [3, 1, 1, 1, 1]


@pytest.mark.parametrize("kind", ["tokens", "text"])
def test_a_closed_iterator_stops_the_work_at_once(kind, tokenizer, writer):
    reads = []
    handle = writer.register_forward_pre_hook(lambda *_: reads.append(1))
    if kind == "tokens":
        stream = generate_tokens(writer, [1], 50, seed=0)
    else:
        stream = stream_text(writer, "The", 50, tokenizer=tokenizer, seed=0)
    next(stream)
    before = len(reads)
    stream.close()
    assert list(stream) == []
    handle.remove()
    assert len(reads) == before < 10


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_weights_that_are_not_finite_are_one_clear_line(temperature, tokenizer):
    model = random_model(vocab_size=VOCABULARY).train()
    with torch.no_grad():
        model.blocks[0].ffn.expand.weight[0, 0] = math.nan
    for write in (
        lambda: generate_text(model, "a", 5, temperature, tokenizer=tokenizer),
        lambda: generate_batch(model, ["a", "The cat"], 5, temperature, tokenizer=tokenizer),
    ):
        with pytest.raises(AGI2Error, match=r"^the model's logits are not finite: [^\n]*$"):
            write()
        assert model.training


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_never_changed(training, tokenizer):
    model = random_model(vocab_size=VOCABULARY, dropout=0.5).train(training)
    whole = generate_text(model, "a", 5, tokenizer=tokenizer, seed=0)
    assert model.training is training
    assert generate_text(model, "a", 5, tokenizer=tokenizer, seed=0) == whole
    for stream in (
        generate_tokens(model, [1], 9, seed=1),
        stream_text(model, "a", 9, tokenizer=tokenizer, seed=1, min_length=9),
    ):
        next(stream)
        assert model.training is training
        stream.close()
        assert model.training is training
    beam_search(model, [1], 2, 3)
    assert model.training is training
    with pytest.raises(AGI2Error):
        generate_text(model, "a", 5, temperature=-1, tokenizer=tokenizer)
    assert model.training is training


# --- text -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt", ["The cat", "猫は", "😀", "γάτος", "\n", "<|endoftext|>", "\ud800"]
)
def test_any_prompt_is_kept_and_continued(prompt, tokenizer, writer):
    text = generate_text(writer, prompt, 8, tokenizer=tokenizer, seed=1)
    alone = generate_text(writer, prompt, 8, tokenizer=tokenizer, seed=1, return_full_text=False)
    assert alone
    assert text == prompt + alone


@pytest.mark.parametrize("text", ["😀👩‍👩‍👧!", "नमस्ते", "猫は座った。", "γάτος", "Ünïcödé"])
def test_whole_characters_alone_are_shown(text, tokenizer):
    model = reciter(tokenizer, text, "The")
    pieces = list(stream_text(model, "The", 60, 0, tokenizer=tokenizer))
    assert "".join(pieces) == text
    assert len(pieces) > 1
    assert "" not in pieces


def test_a_character_cut_off_at_the_end_is_marked(tokenizer):
    tokens = tokenizer.encode("a☃")
    assert len(tokens) > 2
    model = reciting_model(VOCABULARY, tokens)
    text = generate_text(model, "", len(tokens) - 1, 0, tokenizer=tokenizer)
    assert text == "a\ufffd"
    assert generate_batch(model, [""], len(tokens) - 1, 0, tokenizer=tokenizer) == [[text]]
    choices = generate_choices(model, "", len(tokens) - 1, 0, tokenizer=tokenizer)
    assert "".join(choice.text for choice in choices) == text
    assert len(choices) == len(tokens) - 1


def test_an_empty_prompt_starts_at_the_end_of_text(tokenizer, writer):
    expected = list(generate_tokens(writer, [tokenizer.end_of_text], 10, 0))
    assert generate_text(writer, "", 10, 0, tokenizer=tokenizer) == tokenizer.decode(expected)
    best = beam_search(writer, [tokenizer.end_of_text], 2, 4, end_token=tokenizer.end_of_text)
    assert generate_beam_text(writer, "", 2, 4, tokenizer=tokenizer) == tokenizer.decode(
        best[0].tokens
    )


def test_a_stream_joined_is_the_text(tokenizer, writer):
    options = {"max_length": 40, "temperature": 1.2, "top_k": 50, "top_p": 0.95, "seed": 3}
    pieces = list(stream_text(writer, "The", tokenizer=tokenizer, **options))
    assert len(pieces) > 10
    text = generate_text(writer, "The", tokenizer=tokenizer, **options)
    assert text == "The" + "".join(pieces)
    assert (
        list(stream_text(writer, tokenizer.encode("The"), tokenizer=tokenizer, **options)) == pieces
    )


def test_the_callback_is_given_the_same_pieces(tokenizer, writer):
    options = {"max_length": 40, "temperature": 1.2, "seed": 3, "tokenizer": tokenizer}
    pieces = []
    text = generate_text(writer, "The", on_text=pieces.append, **options)
    assert pieces == list(stream_text(writer, "The", **options))
    assert text == "The" + "".join(pieces)


def test_max_length_counts_new_tokens(tokenizer):
    model = reciter(tokenizer, "xyzxyz", "ab", ends=False)
    for length in (1, 3, 6):
        assert (
            generate_text(model, "ab", length, 0, tokenizer=tokenizer) == "ab" + "xyzxyz"[:length]
        )


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["\n\nYou:"], "one two"),
        (["three", "two"], "one "),
        ("two", "one "),
        (["one"], ""),
        (["absent"], "one two\n\nYou: three"),
        ([""], "one two\n\nYou: three"),
        (["three!"], "one two\n\nYou: three"),
        (["two\n\nYou: three", "\n"], "one two"),
    ],
)
def test_text_ends_before_a_stop_string_and_never_shows_a_part_of_it(stop, expected, tokenizer):
    """The last text but one begins a stop string that never comes: it is held back, then shown."""
    model = reciter(tokenizer, "one two\n\nYou: three", "go")
    pieces = list(stream_text(model, "go", 60, 0, tokenizer=tokenizer, stop=stop))
    assert "".join(pieces) == expected
    assert generate_text(model, "go", 60, 0, tokenizer=tokenizer, stop=stop) == "go" + expected
    # The best of the searched texts is this one, too: everything else has next to no probability.
    beams = generate_beam_text(model, "go", 2, 60, tokenizer=tokenizer, stop=stop)
    assert beams == "go" + expected


ALPHABET = st.text("ab", max_size=12)


@given(text=ALPHABET, stop=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
@settings(deadline=None, max_examples=20)
def test_the_stop_string_that_is_complete_first_ends_the_text(text, stop):
    tokenizer = BasicTokenizer("ab")
    model = reciting_model(4, [*tokenizer.encode(text), tokenizer.end_of_text])
    ends = [(place + len(string), place) for string in stop if (place := text.find(string)) >= 0]
    expected = text[: min(ends)[1]] if ends else text
    pieces = list(stream_text(model, "a", 20, 0, tokenizer=tokenizer, stop=stop))
    assert "".join(pieces) == expected
    beams = generate_beam_text(
        model, "a", 1, 20, tokenizer=tokenizer, stop=stop, return_full_text=False
    )
    assert beams == expected


def test_a_stop_string_matches_wherever_tokens_are_cut(tokenizer):
    """`the` is one token: stops that begin or end inside it are found all the same."""
    assert len(tokenizer.encode(" the")) == 1
    model = reciter(tokenizer, "a the cat", "go")
    stops = {"h": "a t", "he": "a t", "e c": "a th", "a t": "", (" the", "h"): "a t"}
    for stop, expected in stops.items():
        text = generate_text(
            model, "go", 60, 0, tokenizer=tokenizer, stop=stop, return_full_text=False
        )
        assert text == expected


def test_a_stop_string_that_the_last_broken_character_completes_is_not_shown(tokenizer):
    tokens = tokenizer.encode("ab☃")[:-1]
    model = reciting_model(VOCABULARY, tokens)
    options = {"tokenizer": tokenizer, "return_full_text": False}
    assert generate_text(model, "", len(tokens), 0, **options) == "ab\ufffd"
    assert generate_text(model, "", len(tokens), 0, stop="b\ufffd", **options) == "a"


def test_leading_space_is_skipped_also_where_it_would_stop_the_text(tokenizer):
    model = reciter(tokenizer, " \n\n\n Hi\n\nmore", "go")
    pieces = stream_text(
        model, "go", 60, 0, tokenizer=tokenizer, stop=["\n\n"], skip_leading_space=True
    )
    assert "".join(pieces) == "Hi"


PUNCTUATED = "ab1 \n.!?…。！？\"')」"
MARKS, FULL_WIDTH, CLOSING = ".!?…。！？", "。！？", "\"')」"


def first_sentence(text: str, min_length: int) -> str:
    """Marks and what closes behind them, then white space, or after a full-width mark anything."""
    early = re.sub(f"[{MARKS}]", "x", text[: max(0, min_length - 1)])
    masked = early + text[len(early) :]
    for run in re.finditer(f"[{MARKS}][{MARKS}{CLOSING}]*", masked):
        after = text[run.end() : run.end() + 1]
        last_mark = run[0].rstrip(CLOSING)[-1]
        if after and (after.isspace() or last_mark in FULL_WIDTH):
            return text[: run.end()]
    return text


@given(
    text=st.text(PUNCTUATED, max_size=25),
    min_length=st.integers(0, 12),
    stop=st.lists(st.text(PUNCTUATED, min_size=1, max_size=3), max_size=2),
)
@settings(deadline=None, max_examples=20)
def test_text_may_end_where_a_sentence_ends(text, min_length, stop):
    tokenizer = BasicTokenizer(PUNCTUATED, lowercase=False, fold_whitespace=False)
    # Past the end, the end of text is forbidden as long as the text is too short.
    text += "a" * (min_length - len(text))
    model = reciting_model(len(PUNCTUATED) + 2, [*tokenizer.encode(text), tokenizer.end_of_text])
    expected = first_sentence(text, min_length)
    ends = [(at + len(each), at) for each in stop if (at := expected.find(each)) >= 0]
    expected = expected[: min(ends)[1]] if ends else expected
    pieces = stream_text(
        model,
        "a",
        40,
        0,
        tokenizer=tokenizer,
        stop_at_sentence_end=True,
        min_length=min_length,
        stop=stop,
    )
    assert "".join(pieces) == expected


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Pi is 3.14. No", "Pi is 3.14."),
        ('He said "Go!" And', 'He said "Go!"'),
        ("Wait... what", "Wait..."),
        ("猫は座った。犬", "猫は座った。"),
        ("「行け。」と", "「行け。」"),
        ("no end", "no end"),
        ("the end.", "the end."),
    ],
)
def test_sentences_of_several_scripts(text, shown, tokenizer):
    model = reciter(tokenizer, text, "go")
    options = {"tokenizer": tokenizer, "stop_at_sentence_end": True, "return_full_text": False}
    assert generate_text(model, "go", 60, 0, **options) == shown
    assert generate_batch(model, ["go"], 60, 0, **options) == [[shown]]


def test_a_logit_bias_names_tokens_by_their_text_or_id(tokenizer):
    (the,) = tokenizer.encode(" the")
    model = reciter(tokenizer, "a the", "go")
    for name in (" the", the):
        text = generate_text(
            model, "go", 2, 0, tokenizer=tokenizer, logit_bias={name: -200.0}, seed=0
        )
        assert text.startswith("goa")
        assert " the" not in text
    forced = generate_text(model, "go", 3, 1.0, tokenizer=tokenizer, logit_bias={" the": 300.0})
    assert forced == "go" + 3 * " the"


def test_a_logit_bias_that_names_no_token_is_one_clear_line(tokenizer, writer):
    for bias, message in (
        ({"xyz": 1.0}, "logit_bias: 'xyz' is not one token but 'x' + 'y' + 'z': name tokens"),
        ({"": 1.0}, "logit_bias: '' is not one token but no token: name tokens"),
        ({290: 1.0}, "logit_bias: 290 is not a token id below 290"),
        ({-1: 1.0}, "logit_bias: -1 is not a token id below 290"),
    ):
        with pytest.raises(AGI2Error) as caught:
            generate_text(writer, "a", tokenizer=tokenizer, logit_bias=bias)
        assert str(caught.value) == message
    with pytest.raises(AGI2Error, match=r"^logit_bias: 'a' is not a token id below 290$"):
        next(generate_tokens(writer, [1], logit_bias={"a": 1.0}))


def test_a_stopping_criterion_ends_the_text_that_it_accepts(tokenizer):
    model = reciter(tokenizer, "one. two. three", "go")
    seen = []

    def two_sentences(text):
        seen.append(text)
        return text.count(".") == 2

    text = generate_text(
        model, "go", 60, 0, tokenizer=tokenizer, stopping_criteria=[lambda _: False, two_sentences]
    )
    assert text == "goone. two."
    assert seen[-1] == "one. two."
    assert all("one. two.".startswith(part) for part in seen)


def test_the_device_is_chosen_as_everywhere_else(tokenizer, writer, caplog):
    expected = generate_text(writer, "a", 5, 0, tokenizer=tokenizer)
    for device in ("cpu", torch.device("cpu"), "cuda:99"):
        assert generate_text(writer, "a", 5, 0, tokenizer=tokenizer, device=device) == expected
    with pytest.raises(AGI2Error, match="device"):
        generate_text(writer, "a", 5, 0, tokenizer=tokenizer, device="toaster")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length must be at least 1, not 0"),
        ({"temperature": -0.5}, "temperature must be a number from 0 on, not -0.5"),
        ({"temperature": math.nan}, "temperature must be a number from 0 on, not nan"),
        ({"temperature": math.inf}, "temperature must be a number from 0 on, not inf"),
        ({"top_k": -1}, "top_k must be at least 1, not -1"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, not 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, not 1.5"),
        ({"top_p": math.nan}, "top_p must be above 0 and at most 1, not nan"),
        ({"repetition_penalty": 0}, "repetition_penalty must be from 0.0001 to 10000, not 0"),
        (
            {"repetition_penalty": math.nan},
            "repetition_penalty must be from 0.0001 to 10000, not nan",
        ),
        (
            {"tokenizer": None},
            "a tokenizer is needed: pass the one the model was trained with",
        ),
    ],
)
def test_an_option_out_of_its_range_is_one_clear_line(options, message, tokenizer, writer):
    with pytest.raises(AGI2Error) as caught:
        generate_text(writer, "a", **{"tokenizer": tokenizer, **options})
    assert str(caught.value) == message


@pytest.mark.parametrize("prompt", ["The cat sat. The cat", "", "a"])
def test_speculation_writes_the_greedy_text(prompt, tokenizer, writer):
    options = {"tokenizer": tokenizer, "temperature": 0.0, "stop": ["zz"]}
    plain = generate_text(writer, prompt, 50, **options)
    assert generate_text(writer, prompt, 50, speculative="ngram", **options) == plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speculative": "tree"}, "speculative must be 'none' or 'ngram', not 'tree'"),
        (
            {"speculative": "ngram", "temperature": 0.5},
            'temperature 0.5 does not go with speculative = "ngram", which is greedy: '
            "set temperature = 0",
        ),
        (
            {"speculative": "ngram", "temperature": 0, "no_repeat_ngram": 2},
            'no_repeat_ngram 2 does not go with speculative = "ngram", which is greedy: '
            "leave no_repeat_ngram out",
        ),
    ],
)
def test_speculation_that_cannot_be_is_one_clear_line(options, message, tokenizer, writer):
    with pytest.raises(AGI2Error) as caught:
        generate_text(writer, "a", tokenizer=tokenizer, **options)
    assert str(caught.value) == message


def test_speculation_writes_one_text_at_a_time(tokenizer, writer):
    with pytest.raises(AGI2Error, match="decodes one sequence at a time"):
        generate_batch(writer, ["a"], 9, 0, tokenizer=tokenizer, speculative="ngram")


def test_speculation_tells_no_probabilities(tokenizer, writer):
    with pytest.raises(AGI2Error, match="gives no probabilities"):
        generate_choices(writer, "a", 9, 0, tokenizer=tokenizer, speculative="ngram")


# --- batches --------------------------------------------------------------------------------

MANNERS = [
    {},
    {"temperature": 0},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.95},
    {"repetition_penalty": 1.5},
    {"temperature": 0, "no_repeat_ngram": 2},
    {"presence_penalty": 0.5, "frequency_penalty": 0.5, "min_length": 6},
    {"stop": ["e", "the"], "logit_bias": {"e": 2.0}},
    {"stop_at_sentence_end": True, "logit_bias": {".": 2.0, " ": 2.0}},
    {"stopping_criteria": [lambda text: len(text) > 7]},
]


@example(prompts=["a", "The cat"], n=2, seed=0, manner={"repetition_penalty": 1.5})
@given(
    prompts=st.lists(
        st.sampled_from(["", "a", "The cat", "sat." * 9, "猫は座った。", SCRIPTS]),
        min_size=1,
        max_size=3,
    ),
    n=st.integers(1, 2),
    seed=st.integers(0, 99),
    manner=st.sampled_from(MANNERS),
)
@settings(deadline=None, max_examples=6)
def test_a_text_of_a_batch_is_what_its_prompt_and_seed_give_alone(
    tokenizer, writer, prompts, n, seed, manner
):
    """Prompts of unequal lengths, one of them longer than the model's positions."""
    n = 1 if manner.get("temperature") == 0 else n
    found = generate_batch(writer, prompts, 30, tokenizer=tokenizer, n=n, seed=seed, **manner)
    for prompt, texts in zip(prompts, found, strict=True):
        assert texts == [
            generate_text(writer, prompt, 30, tokenizer=tokenizer, seed=seed + i, **manner)
            for i in range(n)
        ]


def test_a_batch_may_give_the_continuations_alone(tokenizer, writer):
    options = {"tokenizer": tokenizer, "seed": 1, "n": 2}
    whole = generate_batch(writer, ["a", "The"], 9, **options)
    alone = generate_batch(writer, ["a", "The"], 9, return_full_text=False, **options)
    assert whole == [["a" + text for text in alone[0]], ["The" + text for text in alone[1]]]
    assert generate_batch(writer, [], tokenizer=tokenizer) == []


def test_without_a_seed_every_text_of_a_batch_is_new(tokenizer, writer):
    texts = generate_batch(writer, ["a", "a"], 20, tokenizer=tokenizer, n=3)
    assert len({*texts[0], *texts[1]}) == 6


def test_samples_are_drawn_as_often_as_the_model_says():
    tokenizer = BasicTokenizer("ab")
    model = random_model(2, vocab_size=4, std=0.4)
    many = 4000
    (texts,) = generate_batch(
        model, ["ab"], 2, 1.3, tokenizer=tokenizer, n=many, seed=0, logit_bias={0: -100, 1: -100}
    )
    expected = {}
    for first in (2, 3):
        before = (logits_after(model, [2, 3])[2:] / 1.3).softmax(-1)[first - 2]
        after = (logits_after(model, [2, 3, first])[2:] / 1.3).softmax(-1)
        for second in (2, 3):
            text = "ab" + tokenizer.decode([first, second])
            expected[text] = many * float(before * after[second - 2])
    found = Counter(texts)
    assert found.keys() == expected.keys()
    # Pearson's statistic: above 16.3 once in a thousand for three degrees of freedom.
    assert sum((found[text] - count) ** 2 / count for text, count in expected.items()) < 16.3


def test_a_prompt_is_read_once_and_rows_that_end_leave_the_batch():
    tokenizer = BasicTokenizer("abc")
    model = random_model(1, vocab_size=5, std=0.1)
    reads = []
    handle = model.register_forward_pre_hook(lambda _, args: reads.append(tuple(args[0].shape)))
    generate_batch(model, ["abc", "b"], 12, tokenizer=tokenizer, n=4, seed=0)
    handle.remove()
    assert reads[0] == (2, 3)
    assert reads[1][0] <= 8
    rows = [shape[0] for shape in reads[1:]]
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < rows[0]
    assert all(shape[1] == 1 for shape in reads[1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n must be at least 1, not 0"),
        (
            {"n": 2, "temperature": 0},
            "at temperature 0 all 2 texts would be equal: raise it, or ask for one",
        ),
        (
            {"min_length": 9, "max_length": 8},
            "min_length 9 is above max_length 8: lower the one or raise the other",
        ),
        ({"tokenizer": None}, "a tokenizer is needed: pass the one the model was trained with"),
    ],
)
def test_a_batch_that_cannot_be_is_one_clear_line(options, message, tokenizer, writer):
    with pytest.raises(AGI2Error) as caught:
        generate_batch(writer, ["a"], **{"tokenizer": tokenizer, **options})
    assert str(caught.value) == message


# --- probabilities --------------------------------------------------------------------------


@given(
    seed=st.integers(0, 99),
    manner=st.sampled_from([*MANNERS[:-1], {"max_length": 1}]),
    runners_up=st.integers(0, 3),
)
@settings(deadline=None, max_examples=6)
def test_choices_tell_the_models_probabilities_and_the_text(
    tokenizer, exact_writer, seed, manner, runners_up
):
    writer = exact_writer
    options = {"max_length": 30, "tokenizer": tokenizer, "seed": seed, **manner}
    text = generate_text(writer, "The", return_full_text=False, **options)
    choices = generate_choices(writer, "The", runners_up=runners_up, **options)
    assert "".join(choice.text for choice in choices) == text
    tokens = tokenizer.encode("The")
    for choice in choices:
        logits = logits_after(writer, tokens)
        expected = logits.softmax(-1)
        # Of the model in float64; its probabilities are computed in float32.
        near = functools.partial(pytest.approx, rel=math.expm1(log_softmax_bound(logits)), abs=TINY)
        assert choice.probability == near(float(expected[choice.token]))
        assert len(choice.runners_up) == runners_up
        others = [p for i, p in enumerate(expected.tolist()) if i != choice.token]
        named = [share for _, share in choice.runners_up]
        assert named == near(sorted(others, reverse=True)[:runners_up])
        for token, share in choice.runners_up:
            assert share == near(float(expected[token]))
        tokens.append(choice.token)


def test_choices_show_nothing_of_a_stop_string(tokenizer):
    model = reciter(tokenizer, "one two\n\nYou", "go")
    choices = generate_choices(model, "go", 60, 0, tokenizer=tokenizer, stop=["wo\n"])
    assert "".join(choice.text for choice in choices) == "one t"
    assert [choice for choice in choices if not choice.text] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "beam_size must be at least 1, not 0"),
        ({"max_length": -1}, "max_length must be at least 1, not -1"),
        ({"length_penalty": 1e4}, "length_penalty must be from -10 to 10, not 10000.0"),
        ({"length_penalty": math.nan}, "length_penalty must be from -10 to 10, not nan"),
        ({"repetition_penalty": -2}, "repetition_penalty must be from 0.0001 to 10000, not -2"),
        (
            {"tokenizer": None},
            "a tokenizer is needed: pass the one the model was trained with",
        ),
    ],
)
def test_a_beam_option_out_of_its_range_is_one_clear_line(options, message, tokenizer, writer):
    with pytest.raises(AGI2Error) as caught:
        generate_beam_text(writer, "a", **{"tokenizer": tokenizer, **options})
    assert str(caught.value) == message


def test_a_prompt_that_is_empty_or_not_in_the_vocabulary_is_an_error():
    model = random_model()
    for prompt, message in (
        ([], "^the prompt has no tokens$"),
        ([1, 29], "^the prompt has a token above the vocabulary of 29$"),
        ([-1], "^the prompt has a token above the vocabulary of 29$"),
    ):
        with pytest.raises(AGI2Error, match=message):
            next(generate_tokens(model, prompt))
        with pytest.raises(AGI2Error, match=message):
            beam_search(model, prompt)


def test_a_tokenizer_larger_than_its_model_is_an_error(tokenizer):
    model = random_model(vocab_size=VOCABULARY - 1)
    for write in (generate_text, generate_beam_text):
        with pytest.raises(AGI2Error, match=r"^the tokenizer has 290 tokens, the model only 289"):
            write(model, "a", tokenizer=tokenizer)


def test_texts_that_differ_only_behind_a_stop_string_are_one(tokenizer, writer):
    found = beam_search(writer, tokenizer.encode("the"), 20, 3, vocab_size=tokenizer.vocab_size)
    stop = tokenizer.decode(found[0].tokens)[0]
    texts = generate_beam_texts(writer, "the", 20, 3, tokenizer=tokenizer, results=20, stop=stop)
    assert len({each.text for each in texts}) == len(texts) < 20


def test_beams_follow_what_bears_on_every_token():
    letters = BasicTokenizer("abcde .")
    model = random_model(5, vocab_size=letters.vocab_size, max_seq_len=32)

    def found(**options):
        options = {"tokenizer": letters, "results": 4, **options}
        return [each.text for each in generate_beam_texts(model, "ab", 4, 9, **options)]

    assert all("a" in text for text in found())
    assert not any("a" in text for text in found(logit_bias={"a": -1e4}))
    for text in found(no_repeat_ngram=1):
        assert len(set(text)) == len(text)
    marks = {"logit_bias": {".": 9.0, " ": 9.0}, "early_stopping": True}
    best, sentence = found(**marks)[0], found(**marks, stop_at_sentence_end=True)[0]
    assert len(best) == 9
    assert sentence.endswith(".")
    assert len(sentence) < 9
    with pytest.raises(AGI2Error, match=r"^logit_bias: 'abc' is not one token"):
        found(logit_bias={"abc": 1.0})
    with pytest.raises(AGI2Error, match=r"^min_p does not go with beam search"):
        found(min_p=0.1)
    with pytest.raises(AGI2Error, match=r"^temperature does not go with beam search"):
        beam_search(model, [1], temperature=0.5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_writes_what_the_cpu_writes(tokenizer):
    model = random_model(vocab_size=VOCABULARY)
    expected = generate_text(model, "The", 20, 0, tokenizer=tokenizer)
    beams = generate_beam_text(model, "The", 3, 20, tokenizer=tokenizer)
    assert generate_text(model, "The", 20, 0, tokenizer=tokenizer, device="cuda") == expected
    assert generate_beam_text(model, "The", 3, 20, tokenizer=tokenizer) == beams
    sampled = [generate_text(model, "The", 9, tokenizer=tokenizer, seed=4) for _ in range(2)]
    assert sampled[0] == sampled[1]


# Many texts at once


@pytest.mark.parametrize("rows", [1, 2, 5, 256])
@pytest.mark.parametrize("n", [1, 3])
def test_texts_are_the_same_in_however_many_batches(monkeypatch, rows, n):
    model, prompts = tiny_model(), ["the cat", "a", "whales and", "", "sea"]
    given = {"max_length": 9, "tokenizer": alphabet(), "n": n, "seed": 3, "temperature": 1.0}
    expected = generate_batch(model, prompts, **given)
    monkeypatch.setattr("src.generation.max_batch_rows", lambda model: rows)
    assert generate_batch(model, prompts, **given) == expected


def test_a_batch_has_no_more_rows_than_fit_the_memory(monkeypatch):
    model = tiny_model()  # 2 layers, 16 wide, 12 positions: 3,072 bytes for each row
    assert max_batch_rows(model) == 256
    for room, rows in ((4 * 3072 * 7, 7), (4 * 3072 * 7 - 1, 6), (0, 1)):
        monkeypatch.setattr(
            "src.inference.cache_memory.available_memory", lambda device, room=room: room
        )
        assert max_batch_rows(model) == rows


def test_beams_that_do_not_fit_the_memory_are_refused(monkeypatch):
    monkeypatch.setattr(
        "src.inference.cache_memory.available_memory", lambda device: 256 * 9 * 6 - 1
    )
    with pytest.raises(AGI2Error, match=r"beam_size = 6: their keys and values take 13.8 KB, this"):
        generate_beam_text(tiny_model(), "aaaa", 6, 5, 1.0, alphabet())
    monkeypatch.setattr("src.inference.cache_memory.available_memory", lambda device: 256 * 9 * 6)
    generate_beam_text(tiny_model(), "aaaa", 6, 5, 1.0, alphabet())


def test_one_text_is_no_list_of_prompts():
    with pytest.raises(AGI2Error, match="prompts must be a list of texts, not one text"):
        generate_batch(random_model(vocab_size=28), "abc", tokenizer=alphabet())


def test_criteria_of_stopping_are_functions():
    with pytest.raises(AGI2Error, match="stopping_criteria must be functions"):
        generate_text(
            random_model(vocab_size=28), "a", tokenizer=alphabet(), stopping_criteria=["x"]
        )
