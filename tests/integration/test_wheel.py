"""The wheel, installed in a virtual environment."""

import ensurepip
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from src import __version__
from src.nn import bpe_library, shingle_library
from src.nn.cpu_library import LIBRARY

ROOT = Path(__file__).parents[2]

# Nothing of the checkout may reach the new environment.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV_"))}
# Without the bytecode that other tests wrote (see conftest.py), Python would compile PyTorch anew.
if sys.pycache_prefix is not None:
    ENVIRONMENT["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
ENVIRONMENT["OMP_NUM_THREADS"] = "1"


def run(folder, *command):
    """Run a command in a folder; what it prints."""
    found = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        encoding="utf-8",
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the checkout, without a network."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(
        ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.so")
    )
    shutil.copytree(ROOT / "resources", copy / "resources")
    # Optimizing takes GCC most of the time, and nothing here is fast or slow.
    setup = (copy / "setup.py").read_text(encoding="utf-8")
    assert '"-O3"' in setup
    (copy / "setup.py").write_text(setup.replace('"-O3"', '"-O0"'), encoding="utf-8")
    build = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    name = run(copy, sys.executable, "-c", build).splitlines()[-1]
    return copy / "dist" / name


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory):
    """The folder of programs of a fresh environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("fresh") / "environment"
    venv.create(folder)
    places = {"base": str(folder), "platbase": str(folder)}
    scheme = "venv" if "venv" in sysconfig.get_scheme_names() else None
    scripts, library = (
        Path(sysconfig.get_path(name, *filter(None, [scheme]), vars=places))
        for name in ("scripts", "purelib")
    )
    python = scripts / Path(sys.executable).name
    # The pip that comes with Python, run from its wheel: to install it would take longer.
    bundled = Path(sysconfig.get_config_var("WHEEL_PKG_DIR") or Path(ensurepip.__file__).parent)
    pip = next(bundled.rglob("pip-*.whl")) / "pip"
    run(folder, python, pip, "install", "--no-deps", "--no-index", "-q", wheel)
    # The dependencies are borrowed. A .pth file in a borrowed folder is not followed, so that an
    # editable installation of the checkout stays out.
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (library / "borrowed.pth").write_text("\n".join(borrowed), encoding="utf-8")
    return scripts


def test_the_wheel_holds_every_module_and_recipe_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        f"agi2/{path.relative_to(ROOT / 'src').as_posix()}"
        for path in (ROOT / "src").rglob("*")
        if path.suffix in (".py", ".c", ".h", ".js", ".css", ".html", ".svg", ".typed")
    }
    modules |= {f"agi2/resources/{path.name}" for path in (ROOT / "resources").iterdir()}
    libraries = {
        "_bpe.": bpe_library.LIBRARY,
        "_cpu_kernels.": LIBRARY,
        "_cpu_kernels_avx512.": LIBRARY if platform.machine() in ("x86_64", "AMD64") else None,
        "_cpu_kernels_dotprod.": LIBRARY if platform.machine() in ("aarch64", "arm64") else None,
        "_shingles.": shingle_library.LIBRARY,
    }
    compiled = {name for name in names if Path(name).name.startswith(tuple(libraries))}
    assert {name for name in names if ".dist-info/" not in name} - compiled == modules
    assert len(compiled) == sum(library is not None for library in libraries.values())
    assert any(name.endswith("licenses/LICENSE") for name in names)


# In one process, which imports PyTorch once.
PROGRAM = """
from contextlib import suppress

import agi2
from agi2.cli.main import main

print(agi2.__file__, flush=True)
for command in (["train", "tiny.toml"], ["generate", "tiny.toml", "To be"]):
    print("= = =", flush=True)
    with suppress(SystemExit):
        main(command)
"""


def test_the_installed_package_trains_and_generates(programs, tmp_path):
    (tmp_path / "text.txt").write_text("To be, or not to be: that is the question. " * 30, "utf-8")
    (tmp_path / "tiny.toml").write_text(
        """
        sources = "text.txt"
        model_name = "tiny"
        vocab_size = 270
        model_layer = 1
        model_head = 2
        model_embd = 16
        model_positions = 16
        max_steps = 3
        max_length = 8
        device = "cpu"
        """,
        "utf-8",
    )
    command = programs / "agi2"
    assert run(tmp_path, command, "--version") == f"agi2 {__version__}\n"
    run(tmp_path, command, "init", "text.txt", "--recipe", "quickstart")
    assert 'model_name = "text"' in (tmp_path / "text.toml").read_text("utf-8")
    python = programs / Path(sys.executable).name
    place, trained, said = run(tmp_path, python, "-c", PROGRAM).split("\n= = =\n")
    assert Path(place).is_relative_to(programs.parent)
    assert "--- sample 3 ---" in trained
    assert (tmp_path / "trained" / "tiny" / "model.safetensors").is_file()
    assert said.startswith("To be")
    assert len(said) > len("To be\n")
