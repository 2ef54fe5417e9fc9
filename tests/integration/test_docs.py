"""The documentation: links, files, commands, flags, keys and names in it exist."""

import ast
import itertools
import re
import shlex
import tomllib
from functools import cache
from importlib import import_module
from pathlib import Path
from runpy import run_path

import pytest
import typer

import src
from src.cli.main import app
from src.config import FREE_ARCHITECTURE_KEYS, Config
from src.config_loader import make_config
from src.train.checkpoint_manager import FIXED_ON_RESUME

ROOT = Path(__file__).parents[2]
BUILD = run_path(str(ROOT / "docs" / "build.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = typer.main.get_command(app).commands


def flags_of(command):
    """The flags of a command, and of the commands of a group."""
    own = {flag for each in command.params for flag in each.opts if flag.startswith("-")}
    inside = getattr(command, "commands", {}).values()
    return {"--help", "-h"} | own.union(*map(flags_of, inside))


def parser_of(command):
    """A command without what it does: only its arguments are parsed."""
    for each in getattr(command, "commands", {}).values():
        parser_of(each)
    command.callback = None
    return command


# Not `get_command`, whose commands other tests run: see `conftest.py`.
PARSER = parser_of(typer.main.get_group(app))
FLAGS = {name: flags_of(command) for name, command in COMMANDS.items()}
FLAGS[""] = {"--version", "--help", "-h", "--install-completion", "--show-completion"}
SCRIPTS = {
    "agi2_train.py": "train",
    "agi2_generate.py": "generate",
    "agi2_generate_beam.py": "beam",
    "agi2_interactive.py": "chat",
}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]
# Where the files of the checkout are; other paths in the pages are of the reader.
TRACKED = ("src", "tests", "docs", "benchmarks", "resources", ".ci")


@cache
def read(page):
    return page.read_text(encoding="utf-8")


def blocks(page, language):
    """The fenced code blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", read(page), re.M | re.S)


def prose(page):
    """A page without its fenced code blocks."""
    return re.sub(r"^```.*?^```$", "", read(page), flags=re.M | re.S)


def called(line):
    """Each call of `agi2` in a line of shell: the command, and the arguments after it."""
    for part in re.split(r"&&?|\||;", line):
        words = shlex.split(part, comments=True)
        for index, word in enumerate(words):
            if word == "agi2":
                rest = words[index + 1 :]
                name = rest.pop(0) if rest and not rest[0].startswith("-") else ""
                yield name, rest
                break
            if word in SCRIPTS:
                yield SCRIPTS[word], words[index + 1 :]
                break


def problems_of(name, arguments):
    """What is wrong with a call of `agi2`: its command, its arguments, the keys of `--set`."""
    if not name:  # the parser would do what such a flag says
        return [f"no flag {each}" for each in arguments if each not in FLAGS[""]]
    try:
        with PARSER.make_context("agi2", [name, *arguments]) as context:
            PARSER.invoke(context)
    except typer.Exit as status:  # with 0: --help
        error = status.__cause__
        # Text names a command without what it needs.
        is_name = set(arguments) <= set(getattr(COMMANDS.get(name), "commands", ()))
        if error and not (is_name and type(error).__name__ == "MissingParameter"):
            return [error.format_message()]
    return [
        f"no key {value}"
        for flag, value in itertools.pairwise(arguments)
        if flag in ("--set", "-s")
        and (value.partition("=")[0] not in Config.model_fields or "=" not in value[:-1])
    ]


def commands_in(page):
    """Every line of shell of a page, in code blocks and in `inline code`."""
    for block in blocks(page, "bash"):
        yield from re.sub(r"\\\n\s*", " ", block).splitlines()
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        if re.match(r"(uv run |python )?agi2(_\w+\.py)? \S", code):
            yield code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
class TestEveryPage:
    def test_its_relative_links_lead_to_files(self, page):
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            if not re.match(r"https?://", target):
                assert (page.parent / target.partition("#")[0]).exists(), target

    def test_the_files_that_it_names_exist(self, page):
        for name in re.findall(r"`([\w./-]+)`", prose(page)):
            if name.partition("/")[0] in TRACKED and "/" in name:
                assert (ROOT / name).exists(), name
            elif re.fullmatch(r"agi2_\w+\.py|[A-Z]+\.md|pyproject\.toml|zensical\.toml", name):
                assert (ROOT / name).is_file(), name
            elif name.endswith(".py") and "/" in name:  # relative to src/
                assert (ROOT / "src" / name).is_file(), name

    def test_its_commands_and_flags_exist(self, page):
        for line in commands_in(page):
            for name, arguments in called(line):
                # COMMAND, MODEL ... are placeholders.
                if not name.isupper():
                    assert problems_of(name, arguments) == [], line

    def test_the_scripts_and_extras_of_its_commands_exist(self, page):
        for block in blocks(page, "bash"):
            for path in re.findall(r"[\w./]+\.py\b|resources/\w+\.toml", block):
                assert (ROOT / path).is_file(), path
        for extra in re.findall(r"--extra[ =](\w+)", read(page)):
            assert extra in EXTRAS

    def test_its_configurations_are_valid(self, page):
        for block in blocks(page, "toml"):
            make_config(tomllib.loads(block))
        for code in re.findall(r"`([a-z_]+) = [^`]+`", prose(page)):
            assert code in Config.model_fields or code == "key", code

    def test_the_names_that_its_python_imports_exist(self, page):
        for block in blocks(page, "python"):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and node.module.startswith("src"):
                    module = import_module(node.module)
                    assert [
                        each.name for each in node.names if not hasattr(module, each.name)
                    ] == []


def message_patterns():
    """The messages of the code, as patterns of the lines that they print."""
    for path in (ROOT / "src").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [getattr(each, "value", None) for each in node.values]
                parts = [each if isinstance(each, str) else None for each in parts]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts = re.split(r"%[\d.]*[sdgf]", node.value.replace("%%", "%"))
                parts = [each for part in parts for each in (None, part)][1:]
            else:
                continue
            if (
                id(node) not in docstrings
                and len(re.sub(r"\W", "", "".join(filter(None, parts)))) >= 5
            ):
                yield re.compile(
                    "".join(".*" if each is None else re.escape(each) for each in parts)
                )


def printed_lines(page):
    """The lines of a page that `agi2` prints, without what is generated or left out."""
    for block in blocks(page, "text"):
        if re.search(r"val loss|predicted: |interrupted: ", block):
            for line in block.partition("--- sample")[0].splitlines():
                if line != "...":
                    yield line.removeprefix("# ").strip()


# Of parts, which `console.TrainingDisplay` joins.
PROGRESS = re.compile(
    r"\d+ %  step \d+(/\d+)?  loss [\d.]+(  val [\d.]+)?  [\d,]+ tok/s( \(MFU \d+ %\))?"
    r"  [\d.]+ [MG]B  .+ left"
)


def test_the_output_in_the_pages_is_what_the_code_prints():
    printed = (PROGRESS, *message_patterns())

    def is_printed(line):
        return any(pattern.fullmatch(line) for pattern in printed)

    lines = {line: page for page in PAGES for line in printed_lines(page)}
    assert len(lines) > 20
    assert [line for line in lines if not is_printed(line)] == []
    assert not is_printed("1,071,872 parameters; 231 steps an epoch of 8 sequences (8 in turn)")
    assert not is_printed("predicted: 68 steps of 1,024 tokens, 0.215 epochs over the text")


def test_code_blocks_fit_beside_the_navigation_of_the_site():
    wide = [
        line
        for page in PAGES
        if page.is_relative_to(ROOT / "docs")
        for language in ("bash", "toml")
        for block in blocks(page, language)
        for line in block.splitlines()
        if len(line) > 88
    ]
    assert wide == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("uv run agi2 trian my.toml", "no such command 'trian'"),
        ("agi2 train my.toml --resum", "no such option: --resum"),
        ("agi2 generate trained/my --seed 1", "missing argument 'prompt'"),
        ("agi2 generate trained/my Call me", "(me)"),
        ("agi2 generate trained/my 'Call me' --seed one &", "--seed"),
        ("agi2 data prepare --part 1/2", "missing argument"),
        ("a && agi2 train my.toml --set epoch=3 # --nothing", "no key epoch=3"),
        ("echo Hi | agi2 chat m -s top_k", "no key top_k"),
        ("torchrun --nnodes=4 agi2_train.py my.toml --steps 3", "no such option: --steps"),
        ("agi2 --verison", "no flag --verison"),
    ],
)
def test_a_wrong_command_is_found(line, problem):
    (found,) = [each for call in called(line) for each in problems_of(*call)]
    assert problem in found.lower()


def test_the_pages_show_commands_and_configurations():
    """The expressions above find something to check."""
    found = {name for page in PAGES for line in commands_in(page) for name, _ in called(line)}
    assert found >= set(COMMANDS) - {"list"}
    assert sum(len(blocks(page, "toml")) for page in PAGES) >= 2


def test_the_site_lists_every_page():
    site = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]

    def listed(nav):
        for entry in nav:
            for target in entry.values():
                yield from [target] if isinstance(target, str) else listed(target)

    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert set(listed(site["nav"])) == pages


def test_the_readme_has_the_two_commands_that_set_everything_up():
    assert [
        line for block in blocks(ROOT / "README.md", "bash")[:2] for line in block.splitlines()
    ] == [
        "pip install uv && uv run agi2_train.py resources/quickstart.toml",
        "pip install uv && uv sync --extra=dev && uv run pytest",
    ]


def test_the_guide_on_resuming_names_what_may_not_change():
    section = read(ROOT / "docs" / "guides" / "resume.md").split("\n## ")[2]
    assert section.startswith("What may change")
    fixed, _ = section.split("Everything else may change")
    named = set(re.findall(r"`(\w+)`", fixed))
    assert named == {*FIXED_ON_RESUME, *FREE_ARCHITECTURE_KEYS}


def test_the_configuration_reference_has_every_key_with_its_docstring():
    rows = re.findall(
        r"^\| `(\w+)` \| (.+) \| (.*) \| (.+) \|$", BUILD["configuration_reference"](), re.M
    )
    assert [row[0] for row in rows] == list(Config.model_fields)
    found = {key: (kind, default, meaning) for key, kind, default, meaning in rows}
    assert found["log_to"][0] == 'list of `"tensorboard"` or `"wandb"`'
    assert found["threads"][:2] == ('integer or `"auto"`', '`"auto"`')
    assert found["top_k"] == ("integer", "", "Sample from the k most likely tokens (1 or more).")
    assert found["logit_bias"][:2] == ("table of numbers", "`{}`")


def test_the_command_reference_has_every_command_with_its_flags():
    parts = re.split(r"^## (\S+)$", BUILD["command_reference"](), flags=re.M)
    sections = dict(zip(["", *parts[1::2]], parts[::2], strict=True))
    assert sections.keys() == FLAGS.keys()
    for name, flags in FLAGS.items():
        assert [flag for flag in flags if flag not in sections[name]] == []


def test_the_api_reference_has_every_public_name():
    text = read(ROOT / "docs" / "reference" / "api.md")
    listed = set(re.findall(r"^::: src\.([\w.]+)$", text, re.M))
    assert listed == {f"{home}.{name}" for name, home in src._MODULES.items()}
