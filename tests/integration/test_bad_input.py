"""Bad input on the command line: one line each, exit status 2, and no file is lost."""

import contextlib
import json
import os
import random
import shutil
import struct
import tempfile
from pathlib import Path

import pytest
import tomli_w

from src.cli.main import main

LETTERS = "the cat sat on a mat while the dog ran over hills and rivers"
KEYS = {
    "sources": ["corpus.txt"],
    "model_name": "tiny",
    "vocab_size": 262,
    "model_layer": 1,
    "model_head": 2,
    "model_embd": 32,
    "model_positions": 32,
    "batch_size": 4,
    "max_steps": 4,
    "checkpoint_interval": 2,
    "learning_rate": 0.01,
    "sample_tokens": 0,
    "max_length": 8,
    "device": "cpu",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a corpus and a configuration, and nothing trained."""
    write_corpus(tmp_path)
    configure(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a run of four steps; copied, never changed."""
    folder = tmp_path_factory.mktemp("finished")
    write_corpus(folder)
    configure(folder)
    with contextlib.chdir(folder):
        assert status_of("train", "tiny.toml", "--quiet") == 0
    return folder


@pytest.fixture
def trained(folder, finished):
    """The same folder after training."""
    shutil.copytree(finished / "trained", folder / "trained")
    return folder


def write_corpus(folder):
    words = random.Random(1).choices(LETTERS.split(), k=600)
    (folder / "corpus.txt").write_text(" ".join(words), encoding="utf-8")


def configure(folder, **changes):
    """Write `tiny.toml`; a key that is None is left out."""
    keys = {key: value for key, value in {**KEYS, **changes}.items() if value is not None}
    (folder / "tiny.toml").write_text(tomli_w.dumps(keys), encoding="utf-8")


def line_of(key):
    """The line of a key in the configuration."""
    lines = Path("tiny.toml").read_text("utf-8").splitlines()
    return 1 + next(index for index, line in enumerate(lines) if line.startswith(key))


def status_of(*arguments):
    with pytest.raises(SystemExit) as leaving:
        main([str(argument) for argument in arguments])
    return leaving.value.code


def content(folder):
    """Every file below a folder."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def mistakes(capsys):
    """Run a command that must fail; the lines it says."""

    def run(*arguments, may_write=False):
        before = content(Path.cwd())
        capsys.readouterr()
        status = status_of(*arguments, "--quiet")
        out, err = capsys.readouterr()
        assert (status, out) == (2, ""), err
        after = content(Path.cwd())
        assert may_write or after == before
        lines = err.splitlines()
        assert all(line.startswith("error: ") for line in lines), err
        return [line.removeprefix("error: ") for line in lines]

    return run


def output(capsys, *arguments):
    """Run a command that must work; what it prints."""
    capsys.readouterr()
    status = status_of(*arguments, "--quiet")
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    return out


# Configurations.

UNKNOWN = "resources/default.toml lists every key"


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"favourite": 3}, "favourite", f"unknown key favourite; {UNKNOWN}"),
        ({"epoch": 3}, "epoch", "unknown key epoch; did you mean epochs?"),
        ({"lr": 0.1}, "lr", "unknown key lr; did you mean learning_rate?"),
        ({"n_embd": 32}, "n_embd", "unknown key n_embd; did you mean model_embd?"),
        (
            {"epochs": "three"},
            "epochs",
            "epochs must be an integer, not 'three'",
        ),
        ({"bias": 1}, "bias", "bias must be True or False, not 1"),
        (
            {"temperature": -0.5},
            "temperature",
            "temperature must be a number from 0 on, not -0.5",
        ),
        (
            {"batch_size": 0},
            "batch_size",
            "batch_size must be at least 1, not 0",
        ),
        (
            {"lr_schedule": "cosin"},
            "lr_schedule",
            "lr_schedule must be 'cosine', 'linear', 'constant' or 'wsd', not 'cosin'",
        ),
        (
            {"model_embd": 33},
            "model_embd",
            "model_embd 33 is not divisible by model_head 2",
        ),
        (
            {"seq_len": 64},
            "seq_len",
            "seq_len 64 is above model_positions 32: lower the one or raise the other",
        ),
        (
            {"micro_batch_size": 3},
            "micro_batch_size",
            "micro_batch_size 3 does not divide batch_size 4",
        ),
    ],
)
def test_a_wrong_key_is_told_with_its_file_and_line(changes, key, said, folder, mistakes):
    configure(folder, **changes)
    assert mistakes("train", "tiny.toml") == [f"tiny.toml:{line_of(key)}: {said}"]


def test_a_mistake_on_the_command_line_is_told_as_such(folder, mistakes):
    assert mistakes("train", "tiny.toml", "--set", "epoch=3") == [
        "--set epoch: unknown key epoch; did you mean epochs?"
    ]
    assert mistakes("train", "tiny.toml", "--set", "epochs") == [
        "--set epochs: write KEY=VALUE, for example --set epochs=3"
    ]


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        (["train"], ["sources", "model_name"]),
        (["generate", "prompt"], ["model_name"]),
        (["beam", "prompt"], ["model_name"]),
        (["chat"], ["model_name"]),
    ],
)
def test_every_missing_key_is_told_with_the_use_that_needs_it(command, missing, folder, mistakes):
    configure(folder, sources=None, model_name=None)
    use = {"train": "training", "chat": "interactive"}.get(command[0], "generation")
    name, *prompt = command
    assert mistakes(name, "tiny.toml", *prompt) == [
        f"tiny.toml: {key} is missing: {use} needs it" for key in missing
    ]


def test_all_mistakes_are_told_at_once(folder, mistakes):
    configure(folder, model_name=None, epoch=1, top_k="many", temperature=-1.0)
    lines = mistakes("train", "tiny.toml")
    assert len(lines) == 4
    for word in ("model_name", "epoch", "top_k", "temperature"):
        assert any(word in line for line in lines)


def test_a_missing_configuration(folder, mistakes):
    assert mistakes("train", "none.toml") == [
        "none.toml: no such file; resources/ contains examples"
    ]


def test_a_folder_in_place_of_a_configuration(folder, mistakes):
    assert mistakes("doctor", folder) == [
        f"{folder} is not a folder of a run or a model: it has no config.toml; agi2 list shows "
        "the runs"
    ]


def test_a_configuration_that_is_not_toml(folder, mistakes):
    (folder / "tiny.toml").write_text("epochs = = 3\n", encoding="utf-8")
    (line,) = mistakes("train", "tiny.toml")
    assert line.startswith("tiny.toml: not TOML: ")
    assert "line 1" in line


def test_a_configuration_that_is_not_text(folder, mistakes):
    (folder / "tiny.toml").write_bytes(b"epochs = 3 # caf\xe9\n")
    assert mistakes("train", "tiny.toml") == ["tiny.toml: not UTF-8 text"]


# Sources.


def test_a_missing_source(folder, mistakes):
    configure(folder, sources=["corpus.txt", "novel.txt"])
    assert mistakes("train", "tiny.toml") == [
        f"novel.txt: no such file; paths are relative to {folder}"
    ]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", b"", "a.txt: the file is empty"),
        ("a.txt", b" \n\t\n", "a.txt: the file contains only white space"),
        (
            "a.txt",
            b"\x7fELF\0\0\x01",
            "a.txt: not a text file (it contains NUL bytes); if it is UTF-16 or UTF-32, "
            "set encoding",
        ),
        (
            "a.txt",
            "Käse aus Genève\ntwo ".encode() + b"caf\xe9\n",
            "a.txt:2: not UTF-8 (byte 25); set encoding, or save it as UTF-8, for example with "
            "iconv -f latin1 -t utf-8",
        ),
        (
            "a.jsonl",
            b'{"title": "t", "body": "text"}\n',
            "a.jsonl:1: no field 'text' among title, body; set text_field",
        ),
        (
            "a.csv",
            b"title,body\nt,text\n",
            "a.csv: no field 'text' among title, body; set text_field",
        ),
    ],
)
def test_a_source_without_text(name, data, said, folder, mistakes):
    (folder / name).write_bytes(data)
    configure(folder, sources=["corpus.txt", name])
    assert mistakes("train", "tiny.toml") == [said]


def test_a_folder_without_text(folder, mistakes):
    (folder / "empty").mkdir()
    configure(folder, sources=["empty"])
    (line,) = mistakes("train", "tiny.toml")
    assert line.startswith("empty: no file in this folder has a format that is read: ")


def test_a_source_of_one_character(folder, mistakes):
    (folder / "a.txt").write_text("x", encoding="utf-8")
    configure(folder, sources=["a.txt"], val_fraction=0, tokenizer="basic")
    assert mistakes("train", "tiny.toml") == ["the text has 1 token: at least 2 are needed"]


# Trained models and checkpoints.


@pytest.mark.parametrize("command", [("generate", "prompt"), ("beam", "prompt"), ("chat",)])
def test_using_a_model_before_training_says_which_command_trains(command, folder, mistakes):
    name, *prompt = command
    assert mistakes(name, "tiny.toml", *prompt) == [
        "trained/tiny: no trained model there; train it first: agi2 train tiny.toml"
    ]


def test_a_model_of_another_shape_than_configured(trained, mistakes):
    configure(trained, model_embd=64)
    assert mistakes("generate", "tiny.toml", "a") == [
        "trained/tiny was trained with model_embd = 32, the configuration says 64: "
        "train again, or set it back"
    ]


def test_weights_of_another_shape(trained, mistakes):
    other = ("--set", "model_name=other", "--set", "model_embd=16", "--quiet")
    assert status_of("train", "tiny.toml", *other) == 0
    shutil.copy("trained/other/model.safetensors", "trained/tiny/model.safetensors")
    (line,) = mistakes("generate", "tiny.toml", "a")
    assert line.startswith("trained/tiny/model.safetensors contains a model of another shape: ")


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def damage_flip(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 0xFF
    path.write_bytes(data)


def damage_header(path):
    path.write_bytes(struct.pack("<Q", 2**40) + path.read_bytes()[8:])


def damage_notes(path):
    data = path.read_bytes()
    assert b'{\\"sha256' in data
    path.write_bytes(data.replace(b'{\\"sha256', b'[\\"sha256'))


DAMAGES = [damage_truncate, damage_flip, damage_header]


@pytest.mark.parametrize("damage", [*DAMAGES, damage_notes])
def test_damaged_weights_are_not_used(damage, trained, mistakes):
    damage(trained / "trained/tiny/model.safetensors")
    (line,) = mistakes("generate", "tiny.toml", "a")
    assert line.startswith("trained/tiny/model.safetensors is damaged")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors"])
def test_a_damaged_checkpoint_is_not_resumed(name, damage, trained, mistakes):
    place = "trained/tiny/checkpoints/step-00000004"
    damage(trained / place / name)
    assert mistakes("train", "tiny.toml", "--set", f"resume={place}") == [
        f"{place}/{name} is damaged: its content does not match its hash"
    ]


def test_a_checkpoint_that_misses_a_file_is_not_resumed(trained, mistakes):
    place = "trained/tiny/checkpoints/step-00000004"
    (trained / place / "manifest.json").unlink()
    (line,) = mistakes("train", "tiny.toml", "--set", f"resume={place}")
    assert line.startswith(f"{place} is not a complete checkpoint: ")


def test_resume_passes_over_a_damaged_checkpoint(trained, capsys):
    weights = (trained / "trained/tiny/model.safetensors").read_bytes()
    damage_truncate(trained / "trained/tiny/checkpoints/step-00000004/model.safetensors")
    assert status_of("train", "tiny.toml", "--resume") == 0
    err = capsys.readouterr().err
    assert "step-00000004/model.safetensors is damaged" in err
    assert "resuming trained/tiny/checkpoints/step-00000002 at step 2" in err
    assert (trained / "trained/tiny/model.safetensors").read_bytes() == weights


def test_a_run_without_any_whole_checkpoint_is_not_resumed(trained, capsys):
    for place in (trained / "trained/tiny/checkpoints").iterdir():
        (place / "state.json").write_text("{", encoding="utf-8")
    before = content(trained)
    assert status_of("train", "tiny.toml", "--quiet", "--set", "resume=trained/tiny") == 2
    assert "error: resume: trained/tiny contains no complete checkpoint" in capsys.readouterr().err
    assert content(trained) == before


def test_a_checkpoint_of_another_shape_is_not_resumed(trained, mistakes):
    (line,) = mistakes("train", "tiny.toml", "--resume", "--set", "model_embd=64")
    assert line == (
        "trained/tiny/checkpoints/step-00000004 was trained with model_embd = 32, now it is 64: "
        "set it back, or start from scratch without resume"
    )


def test_a_checkpoint_of_other_data_is_not_resumed(trained, mistakes):
    (line,) = mistakes("train", "tiny.toml", "--resume", "--set", "batch_size=2")
    assert "was trained with batch_size = 4, now it is 2" in line


def other_tokenizer(folder, letters):
    """Put a tokenizer of other letters in the place of the run's."""
    content = {"type": "basic", "lowercase": True, "fold_whitespace": True, "vocabulary": letters}
    (folder / "trained/tiny/tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


def test_a_checkpoint_is_resumed_with_its_own_tokenizer(trained, capsys):
    kept = (trained / "trained/tiny/tokenizer.json").read_bytes()
    other_tokenizer(trained, list("abcdefgh"))
    output(capsys, "train", "tiny.toml", "--resume", "-s", "max_steps=5")
    assert (trained / "trained/tiny/tokenizer.json").read_bytes() == kept


def test_a_checkpoint_with_another_tokenizer_is_damaged(trained, capsys):
    place = Path("trained/tiny/checkpoints/step-00000004")
    (place / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert status_of("train", "tiny.toml", "--resume", "--quiet", "-s", "max_steps=5") == 0
    err = capsys.readouterr().err
    assert f"{place}/tokenizer.json is damaged: its content does not match its hash" in err


def test_a_model_with_a_larger_tokenizer_is_not_used(trained, mistakes):
    other_tokenizer(trained, [chr(0x4E00 + index) for index in range(300)])
    assert mistakes("generate", "tiny.toml", "a") == [
        "trained/tiny: the tokenizer has 302 tokens, the model only 262: they do not belong "
        "together"
    ]


def test_a_model_with_another_tokenizer_is_not_used(trained, mistakes):
    other_tokenizer(trained, list("abcdefgh"))
    assert mistakes("generate", "tiny.toml", "a") == [
        "trained/tiny/tokenizer.json is another tokenizer than the one that "
        "trained/tiny/model.safetensors was trained with: put that one back, or train again"
    ]


def test_a_model_without_a_tokenizer_is_not_used(trained, mistakes):
    (trained / "trained/tiny/tokenizer.json").unlink()
    (line,) = mistakes("generate", "tiny.toml", "a")
    assert line.startswith("no tokenizer at trained/tiny/tokenizer.json")


def test_a_damaged_tokenizer_is_not_used(trained, mistakes):
    (trained / "trained/tiny/tokenizer.json").write_text('{"type": ', encoding="utf-8")
    (line,) = mistakes("generate", "tiny.toml", "a")
    assert line.startswith("trained/tiny/tokenizer.json is not a tokenizer: ")


def test_a_resume_path_that_does_not_exist(folder, mistakes):
    assert mistakes("train", "tiny.toml", "--set", "resume=trained/old") == [
        "resume: trained/old does not exist; name a checkpoint folder, a run folder, or auto"
    ]


# Places that cannot be written.


@contextlib.contextmanager
def unprivileged():
    """Act as the user `nobody` where this is root, who may write anywhere."""
    if os.geteuid():
        yield
        return
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def open_folder(finished, monkeypatch):
    """A working folder with a trained model, which every user may enter and read."""
    if os.name != "posix":
        pytest.skip("needs POSIX permissions")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(finished, folder, dirs_exist_ok=True)
        folder.chmod(0o755)
        try:
            with unprivileged():
                (folder / "corpus.txt").read_bytes()
        except OSError:
            pytest.skip("the user nobody cannot read the folder for temporary files")
        monkeypatch.chdir(folder)
        yield folder
        for path in folder.rglob("*"):
            if path.is_dir():
                path.chmod(0o755)


ANOTHER_FOLDER = "free some space or choose another folder (of a run: output_dir)"


def test_a_read_only_output_folder(open_folder, mistakes):
    (open_folder / "results").mkdir(mode=0o555)
    with unprivileged():
        assert mistakes("train", "tiny.toml", "--set", "output_dir=results") == [
            f"cannot write results/tiny: Permission denied; {ANOTHER_FOLDER}"
        ]


def test_a_read_only_run_is_neither_resumed_nor_moved_but_can_be_used(
    open_folder, mistakes, capsys
):
    for path in [open_folder / "trained", *(open_folder / "trained").rglob("*")]:
        if path.is_dir():
            path.chmod(0o555)
    with unprivileged():
        assert mistakes("train", "tiny.toml") == [
            f"cannot write trained/tiny: Permission denied; {ANOTHER_FOLDER}"
        ]
        (line,) = mistakes("train", "tiny.toml", "--resume", "--set", "max_steps=6")
        assert f"Permission denied; {ANOTHER_FOLDER}" in line
        assert output(capsys, "generate", "tiny.toml", "a", "-s", "sampling_seed=1")


def test_a_source_that_may_not_be_read(open_folder, capsys):
    secret = open_folder / "secret.txt"
    secret.write_text("text", encoding="utf-8")
    secret.chmod(0)
    with unprivileged():
        assert status_of("train", "tiny.toml", "-q", "-s", "sources=secret.txt") == 2
    assert capsys.readouterr().err == "error: secret.txt: cannot be read: Permission denied\n"


@contextlib.contextmanager
def full_disk(size):
    """Let no file grow beyond `size` bytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_while_saving_loses_no_checkpoint(trained, mistakes):
    run = trained / "trained/tiny"
    expected = (run / "model.safetensors").read_bytes()
    shutil.rmtree(run / "checkpoints/step-00000004")
    checkpoint = run / "checkpoints/step-00000002"
    before = content(checkpoint)
    room = (checkpoint / "model.safetensors").stat().st_size + 1000
    with full_disk(room):  # for the weights, not for the optimizer's state, twice as large
        assert mistakes("train", "tiny.toml", "--resume", may_write=True) == [
            "cannot write trained/tiny/checkpoints/step-00000004: I/O error: File too large "
            f"(os error 27); {ANOTHER_FOLDER}"
        ]
    assert list(checkpoint.parent.iterdir()) == [checkpoint]
    assert content(checkpoint) == before
    assert status_of("train", "tiny.toml", "--quiet", "--resume") == 0
    assert (run / "model.safetensors").read_bytes() == expected


def test_a_disk_that_is_full_from_the_start(folder, mistakes):
    with full_disk(100):
        (line,) = mistakes("train", "tiny.toml", may_write=True)
    assert line.startswith("cannot write trained/tiny/")
    assert line.endswith(f"; {ANOTHER_FOLDER}")
    assert not [path for path in content(folder / "trained") if path.stat().st_size]


# What must work.

SCRIPTS = "Ελληνικά кириллица 漢字かな 한국어 العربية עברית हिन्दी 👩🏽‍🚀🏳️‍🌈 e\u0301 \U0001f9ff\n"


@pytest.mark.parametrize("tokenizer", ["bpe", "basic"])
def test_any_script_and_emoji_in_texts_and_prompts(tokenizer, folder, capsys):
    (folder / "corpus.txt").write_text(SCRIPTS * 40, encoding="utf-8")
    configure(folder, tokenizer=tokenizer, model_positions=128, val_fraction=0)
    output(capsys, "train", "tiny.toml")
    for prompt in (SCRIPTS.strip(), "🦆", "ẞ\u0000\u202e"):
        for command in ("generate", "beam"):
            said = output(capsys, command, "tiny.toml", prompt)
            assert said.startswith(prompt)
            assert said.endswith("\n")


def test_an_empty_prompt(trained, capsys):
    assert output(capsys, "generate", "tiny.toml", "", "-s", "sampling_seed=1").strip()
    assert output(capsys, "beam", "tiny.toml", "") != "\n"


def test_top_k_above_the_vocabulary_means_no_limit(trained, capsys):
    seed = ("-s", "sampling_seed=1")
    assert output(capsys, "generate", "tiny.toml", "a", *seed, "-s", "top_k=100000") == output(
        capsys, "generate", "tiny.toml", "a", *seed
    )


def test_temperature_0_takes_the_likeliest_token_as_one_beam_does(trained, capsys):
    greedy = output(capsys, "generate", "tiny.toml", "a", "-s", "temperature=0")
    assert output(capsys, "beam", "tiny.toml", "a", "-s", "beam_size=1") == greedy


# A folder that is named is that folder.

NAMED = {
    "generate": ("a",),
    "beam": ("a",),
    "chat": (),
    "eval": ("--text", "corpus.txt"),
    "export": ("out",),
}


@pytest.mark.parametrize("command", NAMED)
@pytest.mark.parametrize("own", [["config.toml", "metrics.jsonl"], ["config.toml"]])
def test_an_earlier_run_without_weights_is_not_the_later_one(command, own, trained, mistakes):
    for name in own:
        (trained / "trained/tiny.1").mkdir(exist_ok=True)
        shutil.copy(trained / "trained/tiny" / name, trained / "trained/tiny.1" / name)
    files = (
        ["trained/tiny.1"]
        if command == "export"
        else ["trained/tiny.1", "trained/tiny.1/config.toml"]
    )
    for file in files:
        (line,) = mistakes(command, file, *NAMED[command])
        assert line.startswith(
            ("trained/tiny.1 contains no trained model", "trained/tiny.1: no train")
        )


@pytest.mark.parametrize("command", ["generate", "beam"])
def test_a_run_that_was_moved_is_named_by_its_folder(command, trained, capsys):
    shutil.copytree("trained/tiny", "elsewhere")
    greedy = ("a", "--set", "sampling_seed=1")
    expected = output(capsys, command, "tiny.toml", *greedy)
    shutil.rmtree("trained")
    for file in ("elsewhere", "elsewhere/config.toml"):
        assert output(capsys, command, file, *greedy) == expected


def test_a_named_folder_and_another_model_name_contradict_each_other(trained, mistakes):
    (line,) = mistakes("generate", "trained/tiny", "a", "--set", "model_name=other")
    assert line.startswith("model_name = 'other', but trained/tiny is the model that was named")


def test_an_earlier_run_s_configuration_does_not_resume_the_later_one(trained, mistakes):
    shutil.copytree("trained/tiny", "trained/tiny.1")
    (line,) = mistakes("train", "trained/tiny.1/config.toml", "--resume")
    assert line.startswith(
        "resume: trained/tiny.1/config.toml is of the run in trained/tiny.1, but"
    )


# What only the tokenizer knows is checked before the training.


def test_a_bias_on_what_is_no_token_is_told_before_the_training(folder, mistakes):
    (line,) = mistakes("train", "tiny.toml", "--set", 'logit_bias={"the cat sat" = 1.0}')
    assert line.startswith("logit_bias: 'the cat sat' is not one token but ")


# Deep and huge values.

VALUES = {
    "[" * 5000 + "]" * 5000: "--set epochs: it is nested too deeply",
    "[" * 150 + "]" * 150: "--set epochs: it is nested too deeply",
    "9" * 5000: "--set epochs: a number has too many digits",
    "0x" + "f" * 5000: "--set epochs: epochs must be at most 1,000,000,000,000, "
    "not a value of type int that is too large to show",
    "1e999": "--set epochs: epochs must be an integer, not inf",
    "x" * 5000: "--set epochs: epochs must be an integer, not 'xxx",
    "3\nseed = 4": "--set epochs: epochs must be an integer, not '3\\nseed = 4'",
}


@pytest.mark.parametrize(("value", "said"), VALUES.items(), ids=range(len(VALUES)))
def test_deep_and_huge_values_are_one_short_line(value, said, folder, mistakes):
    (line,) = mistakes("train", "tiny.toml", "--set", f"epochs={value}")
    assert line.startswith(said)
    assert len(line) <= 300


def test_many_mistakes_are_counted(folder, mistakes):
    (folder / "tiny.toml").write_text("".join(f"key{i} = 1\n" for i in range(1000)))
    lines = mistakes("train", "tiny.toml")
    assert len(lines) == 21
    assert lines[-1] == "and 982 more problems"  # the two that are missing among them


def test_a_list_shows_whole_runs_beside_any_broken_one(trained, capsys):
    for number, (name, content) in enumerate(
        [
            ("metrics.jsonl", '{"step":' + "[" * 5000 + "]" * 5000 + "}\n"),
            ("metrics.jsonl", '{"step": ' + "9" * 5000 + "}\n"),
            ("config.toml", "a = " + "[" * 5000 + "]" * 5000),
            ("config.toml", "epochs = " + "9" * 5000),
        ]
    ):
        copy = Path(f"trained/broken{number}")
        shutil.copytree("trained/tiny", copy)
        (copy / name).write_text(content)
    assert status_of("list", "--quiet") == 0
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 4
    assert [line.split()[-1] for line in out.splitlines()[1:]].count("broken") == 4
    assert "finished" in out
