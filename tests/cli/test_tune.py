"""`agi2 tune MODEL chats.jsonl`: the plan, the run, its replies, and how it is resumed."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from src.config_loader import load_config
from src.data.chat_template import ChatTemplate
from src.errors import AGI2Error
from src.evaluation.replies import load_replies
from src.formats.model_dir import load_model
from src.train import tuning
from tests.cli.commands import run
from tests.conftest import make_text
from tests.data.chats import messages_lines, preference_lines, random_conversations

SHORT = ("--set", "device=cpu", "--set", "max_steps=3", "--set", "eval_interval=2")
SHORT += ("--set", "checkpoint_interval=2")


@pytest.fixture
def model(shared_run):
    return str(shared_run(max_steps=2, seq_len=48, model_positions=96).folder)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with conversations, in which the command is given; plans take no time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning, "_BENCHMARK_SECONDS", 0)
    chats = random_conversations(40, seed=3, words=2)
    Path("chats.jsonl").write_bytes(messages_lines(chats))
    Path("pairs.jsonl").write_text(preference_lines(chats), encoding="utf-8")
    Path("more.txt").write_text(make_text(300), encoding="utf-8")
    return tmp_path


def test_a_model_is_tuned_and_resumed(place, model, capsys):
    status, out, err = run(capsys, "tune", model, "chats.jsonl", "--name", "tuned", *SHORT)
    assert status == 0, err
    assert "planned: 3 steps of up to " in err
    assert "wrote trained/tuned.toml, the configuration of this run" in err
    assert err.endswith("\nchat with it: agi2 chat trained/tuned\n")
    config = load_config("trained/tuned.toml", "training")
    assert (config.conversations, config.init_from) == (["chats.jsonl"], model)
    assert (config.optimizer, config.max_steps) == ("adamw", 3)
    trained = load_model("trained/tuned")
    assert ChatTemplate.find(trained.tokenizer)
    replies = load_replies(Path("trained/tuned"))
    said = [*replies[0].messages, {"role": "assistant", "content": replies[0].reply}]
    assert out.startswith("\n".join(f"{each['role']}: {each['content']}" for each in said))
    assert "Held-out conversations" in Path("trained/tuned/report.html").read_text("utf-8")

    status, _, err = run(
        capsys, "tune", model, "chats.jsonl", "--name", "tuned", "--resume", "--set", "max_steps=4"
    )
    assert status == 0, err
    assert "step-00000003 at step 3" in err
    status, _, err = run(capsys, "tune", model, "more.txt", "--name", "tuned", "--resume")
    assert status == 2
    assert "trained/tuned.toml trains on chats.jsonl, not on more.txt: name another run" in err


def test_adapters_and_plain_text(place, model, capsys):
    options = ("--lora", "2", "--text", "more.txt", "-q", *SHORT)
    status, out, err = run(capsys, "tune", model, "chats.jsonl", *options)
    assert (status, err) == (0, "")
    assert out.startswith("user: ")
    name = f"{Path(model).name}-chat"
    config = load_config(f"trained/{name}.toml", "training")
    assert (config.lora_rank, config.sources, config.text_share) == (2, ["more.txt"], 0.2)


def test_a_model_is_tuned_on_pairs_of_preferences(place, model, capsys):
    status, out, err = run(capsys, "tune", model, "pairs.jsonl", *SHORT)
    assert status == 0, err
    name = f"{Path(model).name}-dpo"
    text = Path(f"trained/{name}.toml").read_text("utf-8")
    assert "# The model to fine-tune, and the pairs.\ninit_from = " in text
    assert "# More epochs" not in text
    config = load_config(f"trained/{name}.toml", "training")
    assert (config.preferences, config.conversations) == (["pairs.jsonl"], [])
    assert (config.dropout, config.text_share, config.sources) == (0.0, None, [])
    assert "best weights: val loss " in err
    for figure in ("accuracy ", "margin ", "KL "):
        assert figure in err.partition("best weights: ")[2].partition("\n")[0]
    replies = load_replies(Path("trained", name))
    assert replies
    assert all(each.expected.islower() for each in replies)  # the rejected ones are in capitals
    assert out.startswith(f"{replies[0].messages[0]['role']}: ")
    report = Path("trained", name, "report.html").read_text("utf-8")
    assert "margin of rewards" in report
    assert "Held-out conversations" in report
    resume = ("tune", model, "pairs.jsonl", "--resume", "-q", "--set")
    assert run(capsys, *resume, "max_steps=4", "--set", "dpo_beta=0.1")[0] == 0
    status, _, err = run(capsys, "tune", model, "chats.jsonl", "--name", name, "--resume")
    assert (status, "trains on pairs.jsonl, not on chats.jsonl" in err) == (2, True)


def test_what_contradicts_the_resumed_run_is_refused(place, model, capsys, shared_run):
    shutil.copytree(model, "base")
    tune = ("tune", "base", "chats.jsonl", "--name", "tuned")
    assert run(capsys, *tune, "-q", *SHORT)[0] == 0
    other = str(shared_run(max_steps=1, seq_len=48, model_positions=96).folder)
    for options, key in [
        (("--lora", "2"), "lora_rank = None, not 2"),
        (("--text", "more.txt"), "sources = [], not ['more.txt']"),
    ]:
        status, _, err = run(capsys, *tune, *options, "--resume")
        assert status == 2
        assert f"tuned.toml is planned already, with {key}: leave it out" in err
    status, _, err = run(capsys, "tune", other, *tune[2:], "--resume")
    assert status == 2
    assert "is planned already, with init_from = " in err
    Path("base").rename("moved")
    for base in ("moved", "base"):
        status, _, err = run(capsys, "tune", base, *tune[2:], "--resume")
        assert status == 0
        assert "nothing is left to train" in err
    status, _, err = run(capsys, "tune", "base", *tune[2:4], "new", "--resume")
    assert status == 2
    assert err.startswith("error: ")
    assert "base" in err


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_pairs_from_a_pipe(place, model, capsys, pipe):
    pipe(Path("pairs.jsonl").read_bytes())
    status, _, err = run(capsys, "tune", model, "-", "--name", "piped", *SHORT)
    assert status == 0, err
    config = load_config("trained/piped.toml", "training")
    assert config.preferences[0].startswith("trained/piped-")
    assert "accuracy" in err


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_conversations_from_a_pipe_with_a_time_limit(place, model, capsys, pipe, monkeypatch):
    monkeypatch.setattr(tuning, "MAX_EPOCHS", 10**6)
    pipe(Path("chats.jsonl").read_bytes())
    status, _, err = run(capsys, "tune", model, "-", "--minutes", "0.1", "--name", "piped")
    assert status == 0, err
    config = load_config("trained/piped.toml", "training")
    assert config.max_minutes in (0.09, 0.1)
    assert config.early_stopping_patience == tuning._PATIENCE


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["nowhere", "chats.jsonl"], "nowhere"),
        (["chats.jsonl", "{model}"], "chats.jsonl is not a model: the model is named first, then"),
        (["{model}", "nowhere.jsonl"], "nowhere.jsonl: no such file or folder"),
        (["{model}", "chats.jsonl", "--text", "nowhere"], "nowhere: no such file or folder"),
        (["{model}", "chats.jsonl", "--set", "conversations=a"], "--set conversations: give it as"),
        (["{model}", "chats.jsonl", "--lora", "2", "--set", "lora_rank=3"], "--set lora_rank"),
        (["{model}", "chats.jsonl", "--set", "init_from=a"], "--set init_from"),
        (["{model}", "chats.jsonl", "--set", "model_embd=8"], "--set model_embd"),
        (["{model}", "chats.jsonl", "--text-share", "0.1"], "text_share is that of sources"),
        (["{model}", "chats.jsonl", "--text", "-"], "--text -: name a file"),
        (["{model}", "more.txt"], "more.txt"),
        (["{model}", "chats.jsonl", "pairs.jsonl"], "pairs.jsonl has pairs of preferences"),
        (["{model}", "pairs.jsonl", "--text", "more.txt"], "--text: pairs.jsonl has pairs of pref"),
        (["{model}", "pairs.jsonl", "--text-share", "0.1"], "--text-share: pairs.jsonl has pairs"),
        (["{model}", "pairs.jsonl", "--set", "preferences=a"], "--set preferences: give it as an"),
        (["{model}", "pairs.jsonl", "--set", "val_conversations=a"], "val_conversations"),
        (["{model}", "chats.jsonl", "--set", "val_preferences=a"], "val_preferences"),
        (["{model}", "pairs.jsonl", "--set", "max_broken_lines=x"], "--set max_broken_lines"),
        (["{model}", "chats.jsonl", "--minutes", "0"], "--minutes must be at least 0.1"),
    ],
)
def test_wrong_arguments_are_one_line(place, model, capsys, arguments, error):
    arguments = [each.format(model=model) for each in arguments]
    status, out, err = run(capsys, "tune", *arguments)
    assert (status, out) == (2, "")
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert error in lines[0]
    assert not Path("trained").exists() or not list(Path("trained").glob("*"))


def test_several_processes_need_a_configuration(place, model, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, err = run(capsys, "tune", model, "chats.jsonl")
    assert status == 2
    assert "several processes need a configuration: write one with init_from" in err


def test_without_held_out_conversations_no_text_is_sampled(place, model, capsys):
    chats = random_conversations(2, seed=5, words=2)
    Path("two.jsonl").write_bytes(messages_lines(chats))
    status, out, err = run(capsys, "tune", model, "two.jsonl", "--name", "tuned", *SHORT)
    assert (status, out) == (0, ""), err
    assert err.endswith("\nchat with it: agi2 chat trained/tuned\n")
    assert "generate more with" not in err
    options = ("--text", "more.txt", *SHORT)
    status, out, err = run(capsys, "tune", model, "two.jsonl", "--name", "mixed", *options)
    assert (status, out.count("--- sample ")) == (0, 3), err
    assert "agi2 generate trained/mixed" in err


def test_replies_are_lines_of_json(place, model, capsys):
    run(capsys, "tune", model, "chats.jsonl", "--name", "tuned", "-q", *SHORT)
    lines = Path("trained/tuned/replies.jsonl").read_text("utf-8").splitlines()
    assert {*json.loads(lines[0])} == {"messages", "expected", "reply", "is_ended"}


def test_replies_that_cannot_be_saved_do_not_fail_the_run(place, model, capsys, monkeypatch):
    def fail(path, text):
        raise AGI2Error(f"{path}: No space left on device")

    monkeypatch.setattr("src.evaluation.replies.write_text", fail)
    status, out, err = run(capsys, "tune", model, "chats.jsonl", "--name", "tuned", *SHORT)
    assert (status, out) == (0, "")
    assert "the replies are not saved: " in err
    assert err.endswith("\nchat with it: agi2 chat trained/tuned\n")
