import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from src.config import GPT2Config
from src.data.tokens import count_bytes, tokenize
from src.dataset import TextDataset
from src.errors import AGI2Error
from src.evaluation.loss import TextEvaluation, evaluate, evaluate_text
from src.model import GPT2Model
from src.tokenizer import BasicTokenizer, BPETokenizer
from src.train.metrics import Evaluation
from tests.bounds import gamma, log_softmax_bound, nearly, score_bound
from tests.tiny_models import in_their_layout, random_model, transformers_twin

quick = settings(deadline=None, max_examples=30)
TEXT = "call me ishmael. some years ago, never mind how long precisely, naïve 🐳 whales swam."


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = BPETokenizer(270)
    tokenizer.fit([TEXT] * 2)
    return tokenizer


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    sizes = {"max_seq_len": 16, "d_model": 16, "n_layers": 1, "n_heads": 2}
    config = GPT2Config(vocab_size=tokenizer.vocab_size, dropout=0.3, **sizes)
    # Of its logits in float64, only the losses are computed in float32.
    return GPT2Model(config).double()


def mean_of(losses, model):
    """The mean of exact losses, and what it may be of losses in float32."""
    return pytest.approx(np.mean(losses), rel=0, abs=score_bound(model))


def assert_figures_are_of_the_loss(result):
    """Each is a few operations in float64 from the loss; an exponent's roundings are a power's."""
    assert math.log(result.perplexity) == nearly(result.loss, 8)
    bits = result.loss * result.tokens / math.log(2)
    assert result.bits_per_byte == nearly(bits / result.text_bytes, 8)


def windows(tokenizer, width, text=TEXT):
    return TextDataset.from_tokens(tokenize([text], tokenizer), width + 1, stride=width)


def loop(model, tokenizer, width):
    """Loss of every token but the first, each predicted once, one window after the other."""
    ids = torch.tensor(tokenizer.encode(TEXT))
    model.eval()
    losses = []
    with torch.no_grad():
        first = 0
        while len(losses) < len(ids) - 1:
            # The last window is pushed back so that it is whole.
            start = min(first, len(ids) - 1 - width)
            logits = model(ids[None, start : start + width])[0]
            each = F.cross_entropy(logits, ids[start + 1 : start + width + 1], reduction="none")
            losses += each[first - start :].tolist()
            first += width
    return losses


@pytest.mark.parametrize("width", [4, 7, 8, 16])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_loss_equals_a_plain_loop_whatever_the_batch_size(model, tokenizer, width, batch_size):
    result = evaluate(model, windows(tokenizer, width), tokenizer, batch_size=batch_size)
    losses = loop(model, tokenizer, width)
    assert result.tokens == len(losses) == len(tokenizer.encode(TEXT)) - 1
    assert result.loss == mean_of(losses, model)


@pytest.mark.parametrize("width", [4, 7, 16])
def test_bytes_are_those_of_the_text_after_the_first_token(model, tokenizer, width):
    result = evaluate(model, windows(tokenizer, width), tokenizer)
    first = len(tokenizer.token_bytes(tokenizer.encode(TEXT)[0]))
    assert result.text_bytes == len(TEXT.encode()) - first
    assert_figures_are_of_the_loss(result)


def test_the_token_between_documents_is_predicted_but_has_no_bytes(model, tokenizer):
    tokens = tokenize(["me", "whale"], tokenizer)
    dataset = TextDataset.from_tokens(tokens, 3, stride=2)
    result = evaluate(model, dataset, tokenizer)
    assert result.tokens == len(tokens) - 1
    assert result.text_bytes == 7 - len(tokenizer.token_bytes(int(tokens[0])))


def test_a_text_shorter_than_a_window_is_predicted_whole(model, tokenizer):
    result = evaluate(model, windows(tokenizer, 16, "whales"), tokenizer)
    assert result.tokens == len(tokenizer.encode("whales")) - 1


def test_windows_that_do_not_overlap_count_all_they_predict(model, tokenizer):
    ids = tokenize([TEXT], tokenizer)[:30]
    result = evaluate(model, TextDataset.from_tokens(ids, 6), tokenizer)
    assert result.tokens == 5 * 5


def test_a_uniform_model_needs_the_logarithm_of_the_vocabulary():
    tokenizer = BasicTokenizer("abcdef")
    model = GPT2Model(GPT2Config(tokenizer.vocab_size, 8, 8, 1, 1, position_embedding="learned"))
    torch.nn.init.zeros_(model.token_embeddings.weight)  # tied: all logits are zero
    result = evaluate(model, windows(tokenizer, 4, "abcdefabcdef"), tokenizer)
    # In float32, the logarithm of a sum of 8 powers.
    assert result.loss == pytest.approx(math.log(8), rel=gamma(32), abs=0)
    assert result.text_bytes == result.tokens
    assert_figures_are_of_the_loss(result)


def test_part_of_a_text_is_evenly_spread_over_it(model, tokenizer):
    dataset = windows(tokenizer, 4)
    full = evaluate(model, dataset, tokenizer, max_tokens=10**6)
    assert full == evaluate(model, dataset, tokenizer)
    part = evaluate(model, dataset, tokenizer, max_tokens=12)
    # Three windows: the first, the middle one, and the fresh end of the last.
    losses = loop(model, tokenizer, 4)
    middle = 4 * round((len(dataset) - 1) / 2)
    last = 4 * (len(dataset) - 1)
    expected = losses[:4] + losses[middle : middle + 4] + losses[last:]
    assert part.tokens == len(expected) <= 12
    assert part.loss == mean_of(expected, model)
    assert evaluate(model, dataset, tokenizer, max_tokens=1).tokens == 4


@pytest.mark.parametrize("training", [True, False])
def test_the_model_keeps_its_mode_and_its_gradients(model, tokenizer, training):
    model.train(training)
    evaluate(model, windows(tokenizer, 8), tokenizer)
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_losses_are_of_logits_in_the_precision_that_is_asked_for(
    model, tokenizer, precision, monkeypatch
):
    model, logits = copy.deepcopy(model).float(), []
    head = model.logits

    def watched(hidden):
        logits.append(head(hidden))
        return logits[-1]

    monkeypatch.setattr(model, "logits", watched)
    result = evaluate(model, windows(tokenizer, 8), tokenizer, precision=precision)
    assert {each.dtype for each in logits} == {precision}
    exact = torch.cat(logits).double()
    targets = torch.tensor(tokenizer.encode(TEXT)[1:])
    expected = F.cross_entropy(exact, targets).item()
    assert result.loss == pytest.approx(expected, rel=0, abs=log_softmax_bound(exact))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_agrees_with_the_cpu(model, tokenizer):
    dataset = windows(tokenizer, 8)
    expected = evaluate(model, dataset, tokenizer)
    result = evaluate(model.to("cuda"), dataset, tokenizer, batch_size=4)
    model.to("cpu")
    assert result.tokens == expected.tokens
    assert result.loss == pytest.approx(expected.loss, rel=0, abs=2 * score_bound(model))


def test_figures_of_extreme_losses_are_finite():
    assert Evaluation(2000.0, 5, 10).perplexity == math.inf
    assert Evaluation(2000.0, 5, 10).bits_per_byte == nearly(1000 / math.log(2), 8)
    assert TextEvaluation(2000.0, 5, 10, 1).word_perplexity == math.inf


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (TextEvaluation(1.0, 9, 5, 2, unknown=1), "1 of 9 tokens is <unk>, as the vocabulary"),
        (TextEvaluation(1.0, 9000, 5, 2, unknown=8000), "8,000 of 9,000 tokens are <unk>"),
        (TextEvaluation(1.0, 9, 0, 0), "the tokens decode to no text"),
        (TextEvaluation(math.nan, 9, 9, 2), "the loss is not a finite number"),
        (TextEvaluation(math.inf, 9, 9, 2), "the loss is not a finite number"),
    ],
)
def test_a_figure_that_means_nothing_is_none_and_says_why(found, why):
    assert found.bits_per_byte is None
    assert found.word_perplexity is None
    assert found.no_bits_per_byte.startswith(why)
    assert found.no_word_perplexity == found.no_bits_per_byte
    assert found.describe_bits() == f"no bits per byte: {found.no_bits_per_byte}"


@pytest.mark.parametrize(("size", "words", "has_words"), [(40, 1, True), (41, 1, False)])
def test_a_text_without_spaces_has_no_perplexity_per_word(size, words, has_words):
    found = TextEvaluation(1.0, 9, size, words)
    assert (found.word_perplexity is not None) == has_words
    assert ("few spaces: 1 words" in found.no_word_perplexity) != has_words
    assert found.bits_per_byte == nearly(9 / size / math.log(2), 8)
    assert found.describe_bits() == f"{found.bits_per_byte:.3f} bits per byte"


@settings(deadline=None, max_examples=30)
@given(text=st.text("abé 🐳鯨", min_size=2, max_size=40))
def test_a_text_of_unknown_characters_has_no_bits_per_byte(text):
    tokenizer = BasicTokenizer("abé ", fold_whitespace=False)
    model = random_model(1, vocab_size=tokenizer.vocab_size, max_seq_len=8)
    found = evaluate_text(model, [text], tokenizer, 5)
    lacking = sum(character in "🐳鯨" for character in text[1:])
    assert found.unknown == lacking
    assert (found.bits_per_byte is None) == (lacking > 0)
    assert math.isfinite(found.loss)
    tokens = tokenizer.encode_array(text)
    if lacking or text[0] in "🐳鯨":
        assert count_bytes(tokens, tokenizer) is None
    else:
        assert found.text_bytes == len(text[1:].encode())
        assert count_bytes(tokens, tokenizer) == len(text.encode())


# A sliding window


def positioned_model(tokenizer, positions):
    sizes = {"vocab_size": tokenizer.vocab_size, "max_seq_len": positions}
    return random_model(1, std=0.15, position_embedding="learned", **sizes).double()


def sliding_losses(model, ids, stride):
    """`transformers`' losses of all tokens but the first, one window after the other."""
    twin = transformers_twin(model.config).double()
    twin.load_state_dict(in_their_layout(model.state_dict()))
    positions, ids = model.config.max_seq_len, torch.tensor(ids)
    losses, begin = [], 0
    while len(losses) < len(ids) - 1:
        end = min(begin + positions, len(ids) - 1)
        start = max(0, end - positions)
        with torch.no_grad():
            logits = twin(ids[None, start:end]).logits[0]
        each = F.cross_entropy(logits, ids[start + 1 : end + 1], reduction="none")
        losses += each[len(losses) - start :].tolist()
        begin += stride
    return losses


@pytest.mark.parametrize("positions", [2, 13, 200])
@pytest.mark.parametrize("stride", [1, 2, 7, 13])
def test_a_sliding_window_equals_one_over_transformers_model(tokenizer, positions, stride):
    model = positioned_model(tokenizer, positions)
    if stride > positions:
        with pytest.raises(AGI2Error, match=f"the model's {positions} positions, not {stride}"):
            evaluate_text(model, [TEXT], tokenizer, stride)
        return
    ids = tokenizer.encode(TEXT)
    losses = sliding_losses(model, ids, stride)
    result = evaluate_text(model, [TEXT], tokenizer, stride)
    assert result.tokens == len(losses) == len(ids) - 1
    assert result.loss == mean_of(losses, model)
    assert_figures_are_of_the_loss(result)
    words = len(tokenizer.decode(ids[1:]).split())
    assert result.words == words == len(TEXT.split())
    assert math.log(result.word_perplexity) == nearly(result.loss * result.tokens / words, 8)
    assert result.text_bytes == len(tokenizer.decode(ids[1:]).encode())


def test_windows_are_shared_out_to_batches(model, tokenizer, monkeypatch):
    expected = evaluate_text(model, [TEXT], tokenizer, 3).loss
    monkeypatch.setattr("src.evaluation.loss.EVAL_TOKENS_PER_BATCH", 40)
    found = evaluate_text(model, [TEXT], tokenizer, 3).loss
    assert found == pytest.approx(expected, rel=0, abs=2 * score_bound(model))


def test_words_end_where_documents_do(model, tokenizer):
    result = evaluate_text(model, ["some whale", "whale", " swam "], tokenizer, 5)
    assert result.words == len(["ome", "whale", "whale", "swam"])


@pytest.mark.parametrize("stride", [0, -1, 17])
def test_a_stride_is_from_one_to_the_positions(model, tokenizer, stride):
    with pytest.raises(AGI2Error, match=f"between 1 and the model's 16 positions, not {stride}"):
        evaluate_text(model, [TEXT], tokenizer, stride)


@pytest.mark.parametrize(("text", "count"), [("", "0 tokens"), ("q", "1 token")])
def test_one_token_predicts_nothing(model, tokenizer, text, count):
    with pytest.raises(AGI2Error, match=f"the text has {count}: at least 2 are needed"):
        evaluate_text(model, [text], tokenizer, 5)


def test_weights_that_are_no_numbers_are_told(tokenizer):
    model = positioned_model(tokenizer, 8)
    torch.nn.init.constant_(model.final_norm.weight, math.nan)
    with pytest.raises(AGI2Error, match="the model's weights are broken"):
        evaluate_text(model, [TEXT], tokenizer, 5)


def test_windows_of_one_token_have_nothing_to_predict(model, tokenizer):
    tokens = tokenizer.encode_array(TEXT)
    with pytest.raises(AGI2Error, match="windows of one token"):
        evaluate(model, TextDataset.from_tokens(tokens, 1), tokenizer)
