import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import (
    in_their_layout,
    random_model,
    reciting_model,
    transformers_twin,
)

from src.beam_search import beam_search
from src.errors import AGI2Error
from src.generation import (
    generate_beam_text,
    generate_text,
    generate_tokens,
    stream_text,
)
from src.tokenizer import BasicTokenizer, BPETokenizer

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
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)


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


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_restored(training, tokenizer):
    model = random_model(vocab_size=VOCABULARY, dropout=0.5).train(training)
    whole = generate_text(model, "a", 5, tokenizer=tokenizer, seed=0)
    assert model.training is training
    assert generate_text(model, "a", 5, tokenizer=tokenizer, seed=0) == whole
    for stream in (generate_tokens(model, [1], 9), stream_text(model, "a", 9, tokenizer=tokenizer)):
        next(stream)
        assert not model.training
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
@settings(deadline=None, max_examples=40)
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
        ({"top_k": 0}, "top_k must be at least 1, not 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, not 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, not 1.5"),
        ({"top_p": math.nan}, "top_p must be above 0 and at most 1, not nan"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0, not 0"),
        ({"repetition_penalty": math.nan}, "repetition_penalty must be above 0, not nan"),
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
