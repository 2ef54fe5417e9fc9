"""The commands init and plan."""

import tomllib

import pytest

from src.cli.recipes import list_recipes, read_recipe
from src.config_loader import load_config, make_config
from src.train import planner
from tests.cli.commands import ROOT, run
from tests.conftest import make_text


def test_plan_takes_sources_minutes_and_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text("some text")
    monkeypatch.setattr(
        "src.train.plan_file.propose",
        lambda sources, minutes, out, reading, given: [f"{sources} {minutes} {out}"],
    )
    given = ["plan", "--sources", "a.txt", "b.txt", "--minutes", "30"]
    assert run(capsys, *given) == (0, "['a.txt', 'b.txt'] 30.0 my.toml\n", "")
    given += ["--sources", "c.txt", "--out", "x.toml", "--quiet"]
    assert run(capsys, *given) == (0, "['a.txt', 'c.txt', 'b.txt'] 30.0 x.toml\n", "")
    assert run(capsys, "plan", "a.txt", "b.txt") == (0, "['a.txt', 'b.txt'] 10.0 my.toml\n", "")
    assert run(capsys, "plan", "--minutes", "30")[0] == 2


def test_a_plan_keeps_the_keys_that_are_set(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(planner, "_BENCHMARK_SECONDS", 0)
    monkeypatch.setattr(planner, "SHAPES", planner.SHAPES[:1])
    monkeypatch.chdir(tmp_path)
    rows = "".join(f'row {number},"{make_text(20, number)}"\n' for number in range(40))
    # Without a byte-order mark, only the key says that there is text in this folder.
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "b.csv").write_text(f"title,body\n{rows}", encoding="utf-16-le")
    (tmp_path / "a.csv").write_text(f"title,body\n{rows}")
    status, out, err = run(capsys, "plan", "a.csv")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "no field 'text' among title, body; set text_field" in err
    assert run(capsys, "plan", "a.csv", "--set", "text_field=body", "--quiet")[0] == 0
    assert load_config("my.toml").text_field == "body"
    keys = ["--set", "text_field=body", "--set", "encoding=utf-16-le"]
    assert run(capsys, "plan", "rows", *keys, "--out", "b.toml", "--quiet")[0] == 0
    assert load_config("b.toml").encoding == "utf-16-le"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("sources=b", "--set sources: name the texts as arguments"),
        ("model_name=b", "--set model_name: --out names the file and the run"),
        ("max_minutes=3", "--set max_minutes: use --minutes"),
        ("resume=auto", "--set resume: a plan is for a new run"),
        ("init_from=b", "--set init_from: a plan is for a new model"),
        ("top_q=1", "unknown key top_q; did you mean top_p?"),
    ],
)
def test_a_key_that_a_plan_does_not_keep_is_refused(given, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("some text")
    status, out, err = run(capsys, "plan", "a.txt", "--set", given)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_a_plan_never_overwrites(tmp_path, capsys):
    (tmp_path / "my.toml").write_text("# mine")
    status, out, err = run(
        capsys, "plan", "--sources", "a", "--minutes", "1", "--out", tmp_path / "my.toml"
    )
    assert (status, out) == (2, "")
    assert err == f"error: {tmp_path / 'my.toml'} exists: name another file with --out\n"


# agi2 init


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my book.txt").write_text("some text")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("some text")
    return tmp_path


@pytest.mark.parametrize("recipe", list_recipes())
def test_a_recipe_is_written_with_its_comments_for_a_text(recipe, place, capsys):
    status, out, err = run(capsys, "init", "my book.txt", "notes", "--recipe", recipe)
    assert (status, err) == (0, "")
    assert out == (
        "wrote my book.toml; next: agi2 doctor 'my book.toml', agi2 train 'my book.toml'\n"
    )
    own = {"sources": ["my book.txt", "notes"], "model_name": "my book"}
    text = (place / "my book.toml").read_text("utf-8")
    original = read_recipe(recipe)
    assert tomllib.loads(text) == {**tomllib.loads(original), **own}
    comments = [line for line in original.splitlines() if line.startswith("#")]
    assert [line for line in text.splitlines() if line.startswith("#")][2:] == comments
    assert load_config(place / "my book.toml", "training").sources == own["sources"]


def test_the_recipes_are_the_configurations_in_resources(capsys):
    assert set(list_recipes()) == {path.stem for path in (ROOT / "resources").glob("*.toml")}
    shown = " ".join(run(capsys, "init", "--help")[1].split())
    assert all(name in shown for name in list_recipes())


def test_init_overwrites_nothing_without_force(place, capsys):
    (place / "mine.toml").write_text("# mine")
    given = ["init", "notes", "-o", "mine.toml"]
    status, out, err = run(capsys, *given)
    assert (status, out) == (2, "")
    assert err == "error: mine.toml exists: name another file with --output, or give --force\n"
    assert (place / "mine.toml").read_text() == "# mine"
    assert run(capsys, *given, "--force")[0] == 0
    assert load_config("mine.toml").model_name == "mine"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gone.txt"], "gone.txt: no such file; paths are relative to "),
        (["notes", "--recipe", "soup"], "--recipe: 'soup' is none of chat, default, "),
        (["notes", "--recipe", "../setup"], "--recipe: '../setup' is none of "),
        (["notes", "-o", "no/folder/a.toml"], "cannot write no/folder/a.toml: No such file"),
        (["notes", "-o", ".."], ".. exists: name another file"),
        (["notes", "-o", ""], ". exists: name another file"),
        (["notes", "-o", "notes", "--force"], "cannot write notes: it is a folder"),
        ([], "missing argument 'SOURCE"),
    ],
    ids=str,
)
def test_what_init_cannot_do_is_one_line(arguments, said, place, capsys):
    before = sorted(place.rglob("*"))
    status, out, err = run(capsys, "init", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert sorted(place.rglob("*")) == before


def test_a_source_with_a_secret_is_written_for_the_user_alone(place, capsys):
    url = "https://me:pa55word@host.example/book.txt"
    status, out, err = run(capsys, "init", url)
    assert status == 0
    assert "pa55word" not in out + err
    text = (place / "book.toml").read_text("utf-8")
    assert make_config(tomllib.loads(text)).sources == [url]
    assert text.count("pa55word") == 1
    assert (place / "book.toml").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", [r"back\\slash\\1.txt", 'quo"te.txt', "ünï.txt"])
def test_names_of_all_kinds_are_written_as_they_are(name, place, capsys):
    (place / name).write_text("some text")
    assert run(capsys, "init", name, "-o", "x.toml")[0] == 0
    assert load_config("x.toml").sources == [name]
