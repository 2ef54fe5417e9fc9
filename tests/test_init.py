"""The package's public names, and the time to import it."""

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import src
from src.errors import AGI2Error
from tests.processes import needs_fork, run_python

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", src.__all__)
def test_every_public_name_is_there(name):
    assert getattr(src, name) is not None
    assert name in dir(src)


def test_names_are_those_of_their_modules():
    from src import GPT2Model, load_config

    assert GPT2Model is import_module("src.model").GPT2Model
    assert load_config is import_module("src.config_loader").load_config


def test_a_star_import_gives_the_public_names():
    names = {}
    exec("from src import *", names)
    assert set(src.__all__) <= set(names)


# Each way to import a module of the package; after each, every public name is checked.
ORDERS = [
    "from src import *",
    "import src.inference.beam_search",
    "import src.inference.beam_search as m; assert m is sys.modules['src.inference.beam_search']",
    "from src.inference.beam_search import beam_search",
    "import src.generation",
    "import importlib; importlib.reload(importlib.import_module('src.inference.beam_search'))",
    "[import_module(f'src.{each}') for each in MODULES]",
    "[import_module(f'src.{each}') for each in reversed(MODULES)]",
]
CHECK = """
import pkgutil, sys, types
from importlib import import_module

import src

OTHERS = {"_native", "lm_eval_adapter"}  # no module of Python's, and one that takes seconds
MODULES = sorted({each.name for each in pkgutil.iter_modules(src.__path__)} - OTHERS)
EXPECTED = {}


def check():
    for name, home in src._MODULES.items():
        found = getattr(src, name)
        assert not isinstance(found, types.ModuleType), name
        assert found is getattr(sys.modules[f"src.{home}"], name), name
        assert EXPECTED.setdefault(name, found.__qualname__) == found.__qualname__ == name
    for name in MODULES:
        if name not in src._MODULES and f"src.{name}" in sys.modules:
            assert getattr(src, name) is sys.modules[f"src.{name}"]


for line in sys.argv[1:]:
    exec(line)
    check()
"""


@needs_fork
@pytest.mark.parametrize("first", range(0, len(ORDERS), 3))
def test_every_public_name_is_what_it_says_in_every_order_of_imports(first):
    order = (*ORDERS[first:], *ORDERS[:first], "from src import beam_search")
    result = run_python("-c", CHECK, *order)
    assert result.returncode == 0, result.stderr


def test_no_public_name_is_that_of_a_module():
    """Python makes each module an attribute of its package: it would take the name's place."""
    modules = {path.stem for path in (ROOT / "src").iterdir()}
    assert modules.isdisjoint(src.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'GPT3Model'"):
        src.GPT3Model  # noqa: B018
    with pytest.raises(ImportError):
        from src import GPT3Model  # noqa: F401


def test_the_version_is_the_project_s():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert src.__version__ == project["version"]


@pytest.mark.parametrize("module", ["src", "src.cli.main", "src.config", "src.errors"])
def test_importing_does_not_pay_for_pytorch(module):
    heavy = "{'torch', 'numpy', 'tokenizers', 'rich'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_errors_of_the_user_are_value_errors():
    assert issubclass(AGI2Error, ValueError)
