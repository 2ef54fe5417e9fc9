"""`lm-eval` over HTTP has the results of `lm-eval` in this process."""

import json

import pytest
from lm_eval import simple_evaluate
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.tasks import TaskManager

from src.evaluation.harness import AGI2LM
from src.formats.huggingface import export_huggingface
from src.formats.model_dir import load_model

QUESTIONS = ["the white", "the old", "where is the", "the whale swam. the old", "the"]
TASKS = {
    "of_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["whale", "ship", "sea"]
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "of_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
""",
    "of_generation": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "none"
generation_kwargs: {until: ["?"], max_gen_toks: 6}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """The tasks, whose data lies beside them."""
    folder = tmp_path_factory.mktemp("tasks")
    lines = [{"question": text, "answer": place % 3} for place, text in enumerate(QUESTIONS)]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, task in TASKS.items():
        data = {"data_files": {"test": str(folder / "data.jsonl")}, "cache_dir": str(folder)}
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ntest_split: test\n"
            f"dataset_kwargs: {json.dumps(data)}\n{task}"
        )
    return TaskManager(include_path=str(folder), include_defaults=False)


def evaluate(lm, manager):
    """The metrics, and what the model has answered to each request of each task."""
    found = simple_evaluate(lm, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0)
    metrics = {
        (task, metric): value
        for task, values in found["results"].items()
        for metric, value in values.items()
        if isinstance(value, float)
    }
    answers = {
        task: [answer for sample in samples for [answer] in sample["resps"]]
        for task, samples in found["samples"].items()
    }
    return metrics, answers


@pytest.mark.parametrize("options", [{}, {"num_concurrent": 4}], ids=str)
def test_results_over_http_are_those_of_this_process(server, models, tasks, tmp_path, options):
    trained = load_model(models / "chatty", verbose=False)
    export_huggingface(trained.model, trained.tokenizer, tmp_path / "exported")
    remote = LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions",
        model="chatty",
        tokenizer=str(tmp_path / "exported"),
        tokenizer_backend="huggingface",
        max_length=48,
        **options,
    )
    metrics, answers = evaluate(remote, tasks)
    expected_metrics, expected = evaluate(AGI2LM(trained), tasks)
    assert len(metrics) >= len(TASKS)
    assert metrics == pytest.approx(expected_metrics, abs=1e-6)
    assert answers["of_generation"] == expected["of_generation"]
    for name in ("of_choice", "of_text"):
        assert len(answers[name]) == len(expected[name]) > 0
        for found, wanted in zip(answers[name], expected[name], strict=True):
            score, is_greedy = found if isinstance(found, tuple) else (found, None)
            wanted_score, was_greedy = wanted if isinstance(wanted, tuple) else (wanted, None)
            assert score == pytest.approx(wanted_score, rel=1e-6)
            assert is_greedy == was_greedy
