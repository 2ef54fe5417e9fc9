"""The configuration of a plan that is written, and what is said of it."""

import re
import tomllib

import pytest

from src.config_loader import load_config
from src.errors import AGI2Error
from src.train import planner as planning
from src.train.plan_file import propose, to_toml
from src.train.planner import SHAPES
from src.utils import plural
from tests.conftest import make_text
from tests.train.test_planner import speeds


def proposed(tmp_path, text, minutes):
    """What is printed for a text, and the configuration."""
    source, out = tmp_path / "text.txt", tmp_path / "mine.toml"
    source.write_text(text, encoding="utf-8")
    lines = list(propose([str(source)], minutes, out))
    written = out.read_text("utf-8")
    assert written in lines
    assert all(line.startswith("#") for line in lines if line != written)
    return "\n".join(lines), load_config(out, "training")


def test_a_proposal_is_written_and_told_and_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "_BENCHMARK_SECONDS", 0)
    monkeypatch.setattr(planning, "SHAPES", SHAPES[:2])
    told, config = proposed(tmp_path, make_text(2000), 0.1)
    assert (config.model_name, config.sources) == ("mine", [str(tmp_path / "text.txt")])
    assert re.search(
        r"predicted: [\d,]+ steps of 1,024 tokens, [\d.]+ epochs\n# model: [\d,]+ parameters", told
    )
    assert "# no prediction of the bits per byte" in told
    assert re.search(r"the text has [\d.]+ KB, those runs had 270\.0 KB to 1\.1 MB", told)
    with pytest.raises(AGI2Error, match="exists: name another file with --out"):
        list(propose([str(tmp_path / "text.txt")], 0.1, tmp_path / "mine.toml"))


def test_a_text_like_those_of_the_runs_gets_an_expectation(tmp_path, monkeypatch):
    speeds(monkeypatch, 4e10)
    monkeypatch.setattr(planning, "text_entropy", lambda documents, seed: 2.3)
    told, config = proposed(tmp_path, "the old whale swam " * 60_000, 3)
    assert re.search(r"predicted: \d\.\d\d ± \d\.\d\d bits per byte", told)
    assert config.max_minutes == 2.85  # of 3
    assert "more text is needed" not in told


@pytest.mark.parametrize(
    ("text", "size"), [("", 0), ("a", 1), ("Call me, man.", 13), ("é" * 499, 998)]
)
def test_a_text_that_is_too_small_is_one_line(tmp_path, text, size):
    source = tmp_path / "text.txt"
    source.write_text(text, encoding="utf-8")
    # A file without text may be refused by the reader already.
    expected = f"the text has {plural(size, 'byte')}, too few to plan for: .*at least 1,000"
    with pytest.raises(AGI2Error, match=expected if size else "text"):
        list(propose([str(source)], 1, tmp_path / "mine.toml"))
    assert not (tmp_path / "mine.toml").exists()


def test_a_run_that_ends_before_its_time_says_so(tmp_path, monkeypatch):
    speeds(monkeypatch, 1e12)
    told, config = proposed(tmp_path, make_text(3000), 600)
    assert re.search(r"the run takes \d+ s of 10 h 00 min: for a lower loss", told)
    assert config.max_steps
    assert config.max_minutes is None
    assert "# More epochs over this text would not lower the loss much.\nmax_steps" in told


def test_a_machine_too_slow_for_the_time_gets_the_smallest_shape_and_is_told(tmp_path, monkeypatch):
    speeds(monkeypatch, 1e6)
    told, config = proposed(tmp_path, make_text(3000), 0.1)
    assert "# few steps: 6 s are too short for this machine; raise --minutes" in told
    assert "predicted: 1 step of 1,024 tokens" in told
    assert config.model_embd == SHAPES[0].width


def test_the_toml_holds_its_keys():
    keys = {"sources": ['a "b".txt', "ß"], "dropout": 0.1, "max_minutes": 9.5}
    written = to_toml(keys, 10)
    assert tomllib.loads(written) == keys
    assert written.count("#") == 4


def test_the_keys_that_the_user_has_set_come_last_without_a_planners_comment():
    keys = {"dropout": 0.1, "max_steps": 7, "seed": 3, "top_k": None}
    written = to_toml(keys, 10, {"max_steps", "seed", "top_k"})
    assert written.endswith("\n\n# Set on the command line.\nmax_steps = 7\nseed = 3\n")
    assert "More epochs" not in written
    assert tomllib.loads(written) == {"dropout": 0.1, "max_steps": 7, "seed": 3}


@pytest.mark.parametrize("minutes", [float("nan"), float("inf"), 0.0, -3.0])
def test_a_time_that_is_no_number_is_one_line(tmp_path, minutes):
    with pytest.raises(AGI2Error, match=r"--minutes (nan|inf|0\.0|-3\.0): name a number"):
        next(propose([], minutes, tmp_path / "my.toml"))
