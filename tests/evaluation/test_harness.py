"""Log-likelihoods and generation for lm-eval, compared with `transformers` and lm-eval."""

import json
import math

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.utils import get_rolling_token_windows

from src.errors import AGI2Error
from src.evaluation.harness import AGI2LM, run_tasks
from src.formats.model_dir import TrainedModel
from src.generation import generate_text
from src.tokenizer import BasicTokenizer, BPETokenizer
from tests.bounds import nearly, score_bound
from tests.tiny_models import in_their_layout, random_model, tiny_config, transformers_twin

LETTERS = "abcdefghijklmnopqrstuvwxyz .?"
TEXT = "the white whale swam. the old ship sank. where is the captain?"


def adapter(tokenizer, positions=24):
    sizes = {"vocab_size": tokenizer.vocab_size, "max_seq_len": positions}
    # In float64; what the adapter rounds are log-probabilities in float32.
    model = random_model(3, std=0.15, position_embedding="learned", **sizes).double()
    return AGI2LM(TrainedModel(model, tokenizer, tiny_config()))


@pytest.fixture(scope="module")
def basic():
    return adapter(BasicTokenizer(LETTERS))


@pytest.fixture(scope="module")
def bpe():
    tokenizer = BPETokenizer(290)
    tokenizer.fit([TEXT] * 2)
    return adapter(tokenizer)


def near(lm, score: float, tokens: int):
    """What a sum of so many log-probabilities in float32 may be."""
    return pytest.approx(score, rel=0, abs=max(tokens, 1) * score_bound(lm.model))


def ask(method, *arguments):
    """What the method answers to requests with these arguments."""
    return method([Instance(method.__name__, {}, each, 0) for each in arguments])


def their_log_probs(lm, ids):
    """`transformers`' log-probabilities (T, V) after each of the tokens."""
    twin = transformers_twin(lm.model.config).double()
    twin.load_state_dict(in_their_layout(lm.model.state_dict()))
    with torch.no_grad():
        return twin(torch.tensor([ids])).logits[0].log_softmax(-1)


PAIRS = [
    ("the white", " whale"),
    ("the white ", "whale swam."),  # the space is the continuation's
    ("", "the old ship"),
    ("the old ship sank. where is the captain? the", " white"),  # more than the positions
    ("where", "?"),
    ("where is", ""),
]


@pytest.mark.parametrize("name", ["basic", "bpe"])
def test_likelihoods_are_those_of_transformers(name, request):
    lm = request.getfixturevalue(name)
    positions, encode = lm.model.config.max_seq_len, lm.tokenizer.encode
    for (context, continuation), (score, is_greedy) in zip(
        PAIRS, ask(lm.loglikelihood, *PAIRS), strict=True
    ):
        before = encode(context.rstrip()) or [lm.tokenizer.end_of_text]
        asked = encode(context[len(context.rstrip()) :] + continuation)
        ids = [*before, *asked][-positions - 1 :]
        log_probs = their_log_probs(lm, ids[:-1])[len(ids) - len(asked) - 1 :]
        targets = torch.tensor(asked, dtype=torch.long)
        expected = log_probs.gather(1, targets[:, None]).sum().item() if asked else 0.0
        assert score == near(lm, expected, len(asked))
        assert is_greedy == bool((log_probs.argmax(-1) == targets).all() if asked else True)


def test_a_likelihood_does_not_depend_on_what_else_is_asked(bpe, monkeypatch):
    together = ask(bpe.loglikelihood, *PAIRS)
    monkeypatch.setattr("src.evaluation.harness.EVAL_TOKENS_PER_BATCH", 40)
    in_parts = ask(bpe.loglikelihood, *reversed(PAIRS))
    for ours, theirs in zip(together, reversed(in_parts), strict=True):
        assert ours[0] == near(bpe, theirs[0], 2 * len("the old ship"))
        assert ours[1] == theirs[1]


def test_a_token_that_goes_across_is_the_continuation_s():
    tokenizer = BPETokenizer(262)
    tokenizer.fit([" whale whale"] * 9)
    lm = adapter(tokenizer)
    assert tokenizer.encode("a whale")[1:] != tokenizer.encode("a whal")[1:]
    (across, _), (whole, _) = ask(lm.loglikelihood, ("a whal", "e"), ("a", " whale"))
    assert len(tokenizer.encode(" whale")) == 1
    assert across == whole


def test_what_greedy_decoding_gives_is_greedy(basic):
    (text,) = ask(basic.generate_until, ("the white", {"max_gen_toks": 5}))
    assert len(text) == 5
    other = "a" if text[-1] != "a" else "b"
    found = ask(basic.loglikelihood, ("the white", text), ("the white", text[:-1] + other))
    assert [is_greedy for _, is_greedy in found] == [True, False]
    assert found[0][0] > found[1][0]


def test_the_end_of_a_long_context_is_seen_and_it_is_told_once(caplog):
    lm = adapter(BasicTokenizer(LETTERS))
    long = ("the old ship sank. " * 4, "whale")
    end = (("the old ship sank. " * 4)[-20:], "whale")
    (far, _), (also, _) = ask(lm.loglikelihood, long, long)
    assert far == also
    assert caplog.text.count("longer than the model's positions") == 1
    assert far == near(lm, ask(lm.loglikelihood, end)[0][0], 2 * len("whale"))


def test_a_continuation_longer_than_the_positions_is_refused(basic):
    with pytest.raises(AGI2Error, match="has 40 tokens, the model 24 positions: 'aaaa"):
        ask(basic.loglikelihood, ("the", "a" * 40))


def test_weights_that_are_no_numbers_are_told():
    lm = adapter(BasicTokenizer(LETTERS))
    torch.nn.init.constant_(lm.model.final_norm.weight, math.nan)
    with pytest.raises(AGI2Error, match="the model's weights are broken"):
        ask(lm.loglikelihood, ("a", "b"))


@pytest.mark.parametrize("text", ["", "t", "the white whale swam.", TEXT, TEXT * 3])
@pytest.mark.parametrize("name", ["basic", "bpe"])
def test_whole_texts_are_scored_in_lm_eval_s_own_windows(name, text, request):
    lm = request.getfixturevalue(name)
    end, positions = lm.tokenizer.end_of_text, lm.model.config.max_seq_len
    expected = 0.0
    for seen, asked in get_rolling_token_windows(lm.tokenizer.encode(text), end, positions, 1):
        log_probs = their_log_probs(lm, seen)[-len(asked) :]
        expected += log_probs.gather(1, torch.tensor(asked)[:, None]).sum().item()
    (score,) = ask(lm.loglikelihood_rolling, (text,))
    assert score == near(lm, expected, len(text) + 1)


def test_texts_are_greedy_and_end_before_what_ends_them(basic):
    model, tokenizer = basic.model, basic.tokenizer
    whole = generate_text(model, "the", 20, 0.0, tokenizer=tokenizer, return_full_text=False)
    first, second = ask(
        basic.generate_until,
        ("the", {"until": [], "max_gen_toks": 20, "do_sample": False, "temperature": 3.0}),
        ("the", {"until": whole[2:4], "max_gen_toks": 20}),
    )
    assert first == whole
    assert second == whole[: whole.index(whole[2:4])]
    (default,) = ask(basic.generate_until, ("the", {}))
    assert len(default) <= 256
    assert default.startswith(whole)


def test_sampled_texts_are_the_same_each_time(basic):
    options = {"do_sample": True, "temperature": 2.0, "top_k": 9, "top_p": 0.9, "max_gen_toks": 12}
    texts = ask(basic.generate_until, ("the", options), ("the", options))
    assert texts == ask(basic.generate_until, ("the", options), ("the", options))
    assert texts[0] != texts[1]


def test_what_a_task_asks_for_in_vain_is_named(basic):
    with pytest.raises(AGI2Error, match=r"num_beams is not known here; there are do_sample, max_"):
        ask(basic.generate_until, ("the", {"num_beams": 4}))


# Tasks


TASKS = {
    "own_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["whale", "ship", "captain"]
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "own_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "own_answer": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{written}}"
generation_kwargs: {until: ["?"], max_gen_toks: 4}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}
QUESTIONS = ["the white", "the old", "where is the", "the whale swam. the old", "the"]


@pytest.fixture(scope="module")
def tasks(basic, tmp_path_factory):
    """A folder with tasks, whose data lies beside them."""
    folder = tmp_path_factory.mktemp("tasks")
    options = {"max_gen_toks": 4, "until": ["?"]}
    written = ask(basic.generate_until, *((question, options) for question in QUESTIONS))
    written[0] = "wrong"
    with open(folder / "data.jsonl", "w", encoding="utf-8") as file:
        for number, question in enumerate(QUESTIONS):
            line = {"question": question, "answer": number % 3, "written": written[number]}
            file.write(json.dumps(line) + "\n")
    for name, task in TASKS.items():
        data = {"data_files": {"test": str(folder / "data.jsonl")}, "cache_dir": str(folder)}
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ntest_split: test\n"
            f"dataset_kwargs: {json.dumps(data)}\n{task}"
        )
    (folder / "broken.yaml").write_text(
        "task: broken\ndataset_path: json\ntest_split: test\noutput_type: generate_until\n"
        'dataset_kwargs: {data_files: {test: "nothing.jsonl"}}\n'
    )
    return folder


def test_lm_eval_runs_tasks_of_every_kind(basic, tasks):
    results = run_tasks(basic, list(TASKS), tasks)
    assert results.keys() == TASKS.keys()
    right = 0
    for number, question in enumerate(QUESTIONS):
        pairs = [(question, f" {choice}") for choice in ("whale", "ship", "captain")]
        scores = [score for score, _ in ask(basic.loglikelihood, *pairs)]
        right += scores.index(max(scores)) == number % 3
    assert results["own_choice"]["acc"] == right / 5
    assert results["own_answer"]["exact_match"] == 4 / 5
    total = sum(ask(basic.loglikelihood_rolling, *((question,) for question in QUESTIONS)))
    words = sum(len(question.split()) for question in QUESTIONS)
    size = sum(map(len, QUESTIONS))
    found = results["own_text"]
    # A few numbers are added in float64, in any order; an exponent's roundings are a power's.
    roundings = len(QUESTIONS) + 8
    assert math.log(found["word_perplexity"]) == nearly(-total / words, roundings)
    assert found["bits_per_byte"] == nearly(-total / math.log(2) / size, roundings)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """lm-eval comes with a single task: reading the thousands that it has takes many seconds."""
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(tmp_path / "manager.py"))
    return tmp_path


def test_tasks_of_one_s_own_stand_beside_those_of_lm_eval(basic, tasks, shipped):
    text = (tasks / "own_choice.yaml").read_text().replace("own_choice", "shipped")
    (shipped / "shipped.yaml").write_text(text)
    results = run_tasks(basic, ["shipped", "own_choice"], tasks)
    assert results["shipped"] == results["own_choice"]
    assert run_tasks(basic, ["shipped"]) == {"shipped": results["shipped"]}


@pytest.mark.usefixtures("shipped")
def test_tasks_that_cannot_be_run_are_one_clear_line(basic, tasks):
    with pytest.raises(AGI2Error, match="lm-eval has no task 'own_chioce'; lm-eval ls tasks"):
        run_tasks(basic, ["own_choice", "own_chioce"], tasks)
    with pytest.raises(AGI2Error, match="broken: cannot be loaded: ") as error:
        run_tasks(basic, ["broken"], tasks)
    assert "\n" not in str(error.value)
    with pytest.raises(AGI2Error, match="nowhere does not exist: name a folder with tasks"):
        run_tasks(basic, ["own_choice"], tasks / "nowhere")
