import itertools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from src.config import GPT2Config
from src.errors import AGI2Error
from src.generation import (
    generate_tokens,
)
from src.inference.beam_search import Hypothesis, beam_search
from src.model import GPT2Model
from tests.bounds import score_bound
from tests.tiny_models import (
    in_their_layout,
    random_model,
    reciting_model,
    scheduled_model,
    transformers_twin,
)

WIDE = 81


def exact_model(*arguments, **config) -> GPT2Model:
    """One of random weights whose logits are float64: of them scores are computed in float32."""
    return random_model(*arguments, **config).double()


def close(scores, model, length, penalty=1.0, likely=slice(None)):
    """What scores of up to so many tokens may be.

    To each token's log-probability a bias, penalties and the sum of those before it add 16
    roundings at most, of numbers of its size, and a penalty multiplies it by 1.4 at most: less
    than three times its own error in all. N of them are divided by N^penalty.
    """
    error = 4 * score_bound(model, likely) * max(1, length ** (1 - penalty))
    return pytest.approx(scores, rel=0, abs=error)


def logits_after(model, tokens) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([list(tokens)]))[0, -1]


def log_probability(model, prompt, tokens) -> float:
    """From one reading of the whole text, without a cache."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *tokens]]))[0].double().log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(tokens))


def three_token_model(seed: int, std: float) -> GPT2Model:
    """A model that writes tokens 0, 1 and 2, and has others, so that beams may be many."""
    model = exact_model(seed, vocab_size=WIDE, std=std, tie_weights=False)
    with torch.no_grad():
        model.final_norm.weight[0], model.final_norm.bias[0] = 0.0, 1.0
        model.head.weight[3:] = 0.0
        model.head.weight[3:, 0] = -1000.0
    return model


def every_hypothesis(model, prompt, length, penalty, end_token):
    """All texts of tokens 0, 1, 2 that end with the end token or at the full length, in order."""
    found = []
    for size in range(1, length + 1):
        for tokens in itertools.product(range(3), repeat=size):
            ended = tokens[-1] == end_token
            if end_token in tokens[:-1] or (size < length and not ended):
                continue
            score = log_probability(model, prompt, tokens) / size**penalty
            found.append(Hypothesis(list(tokens[:-1] if ended else tokens), score))
    return sorted(found, key=lambda hypothesis: -hypothesis.score)


def plain_search(
    model,
    prompt,
    size,
    length,
    penalty,
    *,
    end_token,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    no_repeat_ngram=None,
    logit_bias=None,
    min_length=0,
    early_stopping="never",
    groups=1,
    diversity_penalty=0.5,
):
    """The definition, written down: no cache, no tensor that outlives a step, double precision.

    A single group goes on to the full length where nothing may be lost.
    """
    size //= groups
    beams = [[([], 0.0, 0.0)] for _ in range(groups)]  # tokens, what counts, log-probability
    pools = [[] for _ in range(groups)]
    for step in range(1, length + 1):
        said = []
        for group in range(groups):
            grown = []
            for tokens, total, sure in beams[group]:
                scores = logits_after(model, prompt + tokens).double().log_softmax(-1)
                for token, bias in (logit_bias or {}).items():
                    scores[token] += bias
                scores[list({*prompt, *tokens})] *= repetition_penalty
                for token in set(tokens):
                    scores[token] -= presence_penalty + frequency_penalty * tokens.count(token)
                for token in range(len(scores)):
                    text, n = [*prompt, *tokens, token], no_repeat_ngram or 99
                    runs = [text[i : i + n] for i in range(len(text) - n + 1)]
                    if runs and runs[-1] in runs[:-1]:
                        scores[token] = -math.inf
                if end_token is not None and len(tokens) < min_length:
                    scores[end_token] = -math.inf
                for token, score in enumerate(scores.tolist()):
                    less = diversity_penalty * said.count(token)
                    grown.append(([*tokens, token], total + score - less, sure + score))
            grown = [beam for beam in grown if beam[1] > -math.inf]
            grown.sort(key=lambda beam: -beam[1])
            for tokens, _, sure in grown[:size]:
                if tokens[-1] == end_token or step == length:
                    text = tokens[:-1] if tokens[-1] == end_token else tokens
                    pools[group].append((text, sure / step**penalty))
            pools[group] = sorted(pools[group], key=lambda entry: -entry[1])[:size]
            beams[group] = [beam for beam in grown if beam[0][-1] != end_token][:size]
            said += [tokens[-1] for tokens, _, _ in beams[group]]
            if len(pools[group]) == size:
                reach = length if early_stopping == "never" and penalty > 0 else step
                hope = max((sure for _, _, sure in beams[group]), default=-math.inf)
                hopeless = hope / reach**penalty <= pools[group][-1][1]
                if early_stopping == "never" and groups == 1:
                    hopeless = False
                if hopeless or early_stopping is True or size == 1:
                    beams[group] = []
    unique = {tuple(tokens): score for pool in pools for tokens, score in pool}
    return sorted(unique.items(), key=lambda entry: -entry[1])


def assert_same(found, expected, *sizes):
    """The same texts, and scores as `close` says of a model, a length and a penalty."""
    assert [each.score for each in found] == close([score for _, score in expected], *sizes)
    assert [each.tokens for each in found] == [list(tokens) for tokens, _ in expected]


# --- against exhaustive and plain search ----------------------------------------------------


@pytest.mark.parametrize("penalty", [0.0, 0.5, 1.0, 3.0, -1.0])
@pytest.mark.parametrize("end_token", [None, 0])
def test_wide_beams_find_what_a_search_over_all_texts_finds(penalty, end_token):
    model = three_token_model(11, std=0.5)
    expected = every_hypothesis(model, [1, 2], 4, penalty, end_token)
    found = beam_search(model, [1, 2], WIDE, 4, penalty, end_token=end_token)
    assert len(found) == WIDE
    assert len(expected) == (81 if end_token is None else 31)
    del found[len(expected) :]
    scores = [each.score for each in expected]
    assert [each.score for each in found] == close(scores, model, 4, penalty, slice(3))
    assert found[0].tokens == expected[0].tokens
    assert sorted(each.tokens for each in found) == sorted(each.tokens for each in expected)


@given(
    seed=st.integers(0, 999),
    penalty=st.sampled_from([-2.0, -0.5, 0.0, 0.7, 1.0, 2.0]),
    size=st.integers(24, 30),
)
@settings(deadline=None, max_examples=10)
def test_ending_the_search_early_loses_none_of_the_best(seed, penalty, size):
    """24 beams cannot lose a text of four tokens out of three; the pool is full before the end."""
    model = three_token_model(seed, std=0.7)
    expected = every_hypothesis(model, [1], 4, penalty, 0)[:size]
    found = beam_search(model, [1], size, 4, penalty, end_token=0)
    scores = [each.score for each in expected]
    assert [each.score for each in found] == close(scores, model, 4, penalty, slice(3))


@given(
    seed=st.integers(0, 999),
    penalty=st.sampled_from([-1.0, 0.0, 1.0, 2.0]),
    size=st.integers(2, 4),  # one beam is greedy, and ends as greedy ends
    early_stopping=st.sampled_from([True, False, "never"]),
    manner=st.sampled_from(
        [
            {},
            {"repetition_penalty": 1.3},
            {"presence_penalty": 0.7, "frequency_penalty": -0.4},
            {"no_repeat_ngram": 2},
            {"logit_bias": {0: 2.0, 3: -1.5}, "min_length": 3},
        ]
    ),
)
@example(
    seed=388,  # a bias that adds to a log-probability: a full pool is no reason to end
    penalty=1.0,
    size=2,
    early_stopping="never",
    manner={"logit_bias": {0: 2.0, 3: -1.5}, "min_length": 3},
)
@settings(deadline=None, max_examples=12)
def test_narrow_beams_equal_a_plain_search(seed, penalty, size, early_stopping, manner):
    model = exact_model(seed, vocab_size=6, std=0.5)
    options = {"end_token": 0, "early_stopping": early_stopping, **manner}
    found = beam_search(model, [1, 2], size, 7, penalty, **options)
    expected = plain_search(model, [1, 2], size, 7, penalty, **options)
    assert_same(found, expected, model, 7, penalty)


@given(
    seed=st.integers(0, 999),
    penalty=st.sampled_from([-1.0, 0.0, 1.0, 2.0]),
    size_and_groups=st.sampled_from([(2, 2), (4, 2), (3, 3), (6, 2), (6, 3)]),
    diversity_penalty=st.sampled_from([0.0, 0.3, 1.0, 50.0]),
    early_stopping=st.sampled_from([True, False, "never"]),
    end_token=st.sampled_from([None, 0]),
)
@settings(deadline=None, max_examples=10)
def test_groups_of_beams_equal_a_plain_search(
    seed, penalty, size_and_groups, diversity_penalty, early_stopping, end_token
):
    size, groups = size_and_groups
    model = exact_model(seed, vocab_size=6, std=0.5)
    options = {
        "end_token": end_token,
        "early_stopping": early_stopping,
        "groups": groups,
        "diversity_penalty": diversity_penalty,
    }
    found = beam_search(model, [1, 2], size, 6, penalty, **options)
    expected = plain_search(model, [1, 2], size, 6, penalty, **options)
    assert_same(found, expected, model, 6, penalty)


@pytest.mark.parametrize("groups", [1, 2])
def test_texts_end_where_every_token_is_excluded(groups):
    """Three tokens, each once: the fourth has no place."""
    model = exact_model(5, vocab_size=4)
    found = beam_search(model, [3], 2, 9, groups=groups, no_repeat_ngram=1)
    assert len(found) == 2
    for each in found:
        assert sorted(each.tokens) == [0, 1, 2]
        assert each.score == close(log_probability(model, [3], each.tokens) / 3, model, 3)


def test_groups_that_may_share_no_token_write_texts_that_share_none():
    model = exact_model(3, vocab_size=12)
    found = beam_search(model, [1], 4, 8, groups=4, diversity_penalty=1e6)
    assert len(found) == 4
    for place in range(8):
        assert len({each.tokens[place] for each in found}) == 4
    for each in found:  # the penalty is no part of the score
        assert each.score == close(log_probability(model, [1], each.tokens) / 8, model, 8)


def test_the_first_group_searches_as_if_alone():
    model = random_model(4, vocab_size=12)
    alone = beam_search(model, [1], 2, 8)
    together = beam_search(model, [1], 6, 8, groups=3, diversity_penalty=0.7)
    assert all(each.tokens in [other.tokens for other in together] for each in alone)
    assert len(together) > len(alone)
    # Without a penalty all groups are that one, and what they find is shown once.
    assert len(beam_search(model, [1], 6, 8, groups=3, diversity_penalty=0.0)) == len(alone)


# --- when the search is over ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("penalty", "size", "length", "ending"),
    [
        # Here length is a gain: one more token is not yet worth it, five more are.
        (1.7, 2, 6, [0.7] * 6),
        # Here length is a burden: one more token is worth it, twenty would not be.
        (-1.0, 2, 20, [0.1, 0.15, 0.95] + [0.5] * 17),
    ],
)
def test_the_search_goes_on_while_a_longer_text_may_score_better(penalty, size, length, ending):
    model = scheduled_model(torch.tensor([[p, 1 - p] for p in ending]).log()).double()
    growing = [math.log(1 - p) for p in ending]
    scores = {
        n: (sum(growing[:n]) + math.log(ending[n])) / (n + 1) ** penalty for n in range(length)
    }
    best = max(scores, key=scores.get)
    assert best > 0
    found = beam_search(model, [1], size, length, penalty, end_token=0)[0]
    assert found.tokens == [1] * best
    assert found.score == close(scores[best], model, length, penalty)


def test_each_kind_of_early_stopping_reads_further_than_the_one_before():
    """At first an end is likely, and what it scores is out of reach for a while."""
    ending = [0.6, 0.45, 0.9] + [0.01] * 7
    model = scheduled_model(torch.tensor([[p, 1 - p] for p in ending]).log()).double()
    reads = []
    model.final_norm.register_forward_hook(lambda *_: reads.append(1))
    counts = []
    for early_stopping in (True, False, "never"):
        reads.clear()
        found = beam_search(model, [1], 2, 10, 1.0, early_stopping=early_stopping, end_token=0)
        counts.append(len(reads))
        expected = plain_search(model, [1], 2, 10, 1.0, early_stopping=early_stopping, end_token=0)
        assert_same(found, expected, model, 10)
    assert counts[0] < counts[1] < counts[2]


@pytest.mark.parametrize("seed", range(4))
def test_one_beam_is_greedy(seed):
    model = random_model(seed)
    greedy = list(generate_tokens(model, [1, 2], 25, temperature=0, end_token=0))
    assert beam_search(model, [1, 2], 1, 25, end_token=0)[0].tokens == greedy


def test_one_beam_ends_where_the_likeliest_token_ends_it():
    """Though a longer text would score higher: its other tokens are certain."""
    logits = torch.full((8, 2), -50.0)
    logits[:, 1] = 50.0
    logits[0] = torch.tensor([1.0, 0.9])
    model = scheduled_model(logits)
    assert list(generate_tokens(model, [1], 6, temperature=0, end_token=0)) == []
    assert beam_search(model, [1], 1, 6, end_token=0)[0].tokens == []
    assert beam_search(model, [1], 2, 6, end_token=0)[0].tokens == [1] * 6


def test_a_hypothesis_may_be_ended_by_its_own_tokens():
    model = exact_model(10, vocab_size=5, std=0.4)
    found = beam_search(model, [1], 4, 6, is_finished=lambda tokens: tokens[-1] in (2, 3))
    for each in found:
        assert not {2, 3} & set(each.tokens[:-1])
        assert each.tokens[-1] in (2, 3) or len(each.tokens) == 6
        expected = log_probability(model, [1], each.tokens) / len(each.tokens)
        assert each.score == close(expected, model, 6)
    everything_ends = beam_search(model, [1], 3, 6, is_finished=lambda tokens: True)
    assert [len(each.tokens) for each in everything_ends] == [1, 1, 1]


# --- scores ---------------------------------------------------------------------------------


def test_scores_are_the_models_log_probabilities_by_length():
    model = exact_model(3, std=0.2)
    for hypothesis in beam_search(model, [1, 2], 5, 8, 0.6):
        assert len(hypothesis.tokens) == 8
        expected = log_probability(model, [1, 2], hypothesis.tokens) / 8**0.6
        assert hypothesis.score == close(expected, model, 8, 0.6)


def assert_transformers_finds_the_same(model, prompt, size, length, **options):
    """The same texts, and the same scores."""
    twin = transformers_twin(model.config).double()
    twin.load_state_dict(in_their_layout(model.state_dict()))
    ids = torch.tensor([prompt])
    theirs = twin.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=length,
        num_beams=size,
        num_return_sequences=size,
        do_sample=False,
        eos_token_id=0,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    found = beam_search(model, prompt, size, length, end_token=0, **options)
    scores = theirs.sequences_scores.double()  # in float32 as ours: both may be off
    apart = [each.score - score for each, score in zip(found, scores.tolist(), strict=True)]
    assert [gap / 2 for gap in apart] == [close(0, model, length, options["length_penalty"])] * size
    texts = [row[len(prompt) :].tolist() for row in theirs.sequences]
    texts = [row[: row.index(0)] if 0 in row else row for row in texts]
    assert [each.tokens for each in found] == texts


@pytest.mark.parametrize("stopping", range(3))
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
def test_transformers_finds_the_same_texts_and_scores(length_penalty, stopping):
    """Every pair of a penalty, a kind of early stopping and a model occurs."""
    seed = (int(length_penalty) + stopping) % 3
    model = exact_model(seed, vocab_size=12, position_embedding="learned", std=0.25)
    assert_transformers_finds_the_same(
        model,
        [5, 6],
        4,
        9,
        length_penalty=length_penalty,
        early_stopping=(True, False, "never")[stopping],
        repetition_penalty=1.0 + 0.2 * seed,
    )


def test_transformers_finds_the_same_with_the_shape_of_gpt2_small():
    torch.manual_seed(0)
    config = GPT2Config(n_layers=1, dropout=0.0, position_embedding="learned")
    model = GPT2Model(config).double().eval()
    prompt = torch.randint(0, 50257, (40,)).tolist()
    assert_transformers_finds_the_same(
        model, prompt, 4, 5, length_penalty=0.8, early_stopping=False
    )


# --- text -----------------------------------------------------------------------------------


def test_beams_go_on_past_the_models_positions():
    """With one window for all beams, the beams slide as sampling does."""
    model = random_model(9, max_seq_len=6)
    greedy = list(generate_tokens(model, [1, 2], 20, temperature=0))
    assert beam_search(model, [1, 2], 1, 20)[0].tokens == greedy
    hypotheses = beam_search(model, [1, 2], 3, 20)
    assert [len(each.tokens) for each in hypotheses] == [20] * 3
    assert hypotheses[0].score >= hypotheses[1].score >= hypotheses[2].score


# --- bad input ------------------------------------------------------------------------------


def test_as_many_beams_as_tokens_are_not_too_many():
    model = reciting_model(4, [3, 2, 1])
    assert beam_search(model, [0], 4, 3)[0].tokens == [3, 2, 1]
    with pytest.raises(AGI2Error, match="beam_size 4 is above the vocabulary of 3 tokens"):
        beam_search(model, [0], 4, 3, vocab_size=3)


def test_weights_that_are_not_numbers_are_one_clear_line():
    model = random_model()
    with torch.no_grad():
        model.token_embeddings.weight[5] = math.nan
    with pytest.raises(AGI2Error, match=r"^the model's logits are not numbers: are its weights"):
        beam_search(model, [1], 3, 5)
