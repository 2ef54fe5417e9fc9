"""The command `agi2 serve`: its options, and the errors before it listens."""

import importlib.util

import pytest
import torch

from src.formats.model_dir import save_model
from src.model import GPT2Model
from src.serve import server
from tests.cli.commands import run
from tests.tiny_models import alphabet, tiny_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of a model."""
    folder = tmp_path_factory.mktemp("models") / "letters"
    torch.manual_seed(0)
    config = tiny_config(model_name="letters", output_dir=str(folder.parent))
    save_model(GPT2Model(config), alphabet(), config, folder, verbose=False)
    return folder


@pytest.fixture
def served(monkeypatch):
    """The arguments with which the server would have been started."""
    calls = []
    monkeypatch.setattr(server, "serve", lambda *arguments: calls.append(arguments))
    return calls


def test_options_are_the_settings(capsys, folder, served):
    options = {
        "--host": "0.0.0.0",
        "--port": 0,
        "--api-key": "a-key-for-the-tests",
        "--allow-host": "models.example",
        "--max-rows": 3,
        "--max-waiting": 4,
        "--max-connections": 10,
        "--max-tokens": 5,
        "--deadline": 6,
        "--prefix-cache": 7,
        "--model-memory": 8,
        "--shutdown": 9,
    }
    flags = [str(part) for pair in options.items() for part in pair]
    status, _, _ = run(capsys, "serve", folder, *flags, "--set", "temperature=0.5")
    assert status == 0
    [(sources, settings)] = served
    assert [source.name for source in sources] == ["letters"]
    assert sources[0].config.temperature == 0.5
    assert (settings.host, settings.port) == ("0.0.0.0", 0)
    assert settings.api_key == "a-key-for-the-tests"
    assert settings.allowed_hosts == ["models.example"]
    assert (settings.max_rows, settings.max_waiting, settings.max_tokens) == (3, 4, 5)
    assert settings.max_connections == 10
    assert (settings.deadline, settings.shutdown_seconds) == (6, 9)
    assert settings.prefix_cache_bytes == 7 * 2**20
    assert settings.model_memory == 8 * 2**20


@pytest.mark.parametrize("name", ["moby.1", "moby.toml", "a.safetensors", "my model", "m" * 80])
def test_a_model_has_the_name_of_its_folder(capsys, folder, served, tmp_path, name):
    (tmp_path / name).symlink_to(folder)
    for argument in (tmp_path / name, tmp_path / name / "config.toml"):
        assert run(capsys, "serve", argument)[0] == 0
        assert [source.name for source in served.pop()[0]] == [name]


def test_a_model_of_a_file_has_its_name_without_the_ending(capsys, folder, served, tmp_path):
    file = tmp_path / "moby.1.toml"
    file.write_bytes((folder / "config.toml").read_bytes())
    assert run(capsys, "serve", file)[0] == 0
    assert served[0][0][0].name == "moby.1"


def test_key_is_taken_from_the_environment(capsys, folder, served, monkeypatch):
    monkeypatch.setenv("AGI2_API_KEY", "a-key-for-the-tests")
    assert run(capsys, "serve", folder, "--host", "0.0.0.0")[0] == 0
    assert served[0][1].api_key == "a-key-for-the-tests"


def test_another_address_needs_a_key(capsys, folder, served, monkeypatch):
    monkeypatch.delenv("AGI2_API_KEY", raising=False)
    status, _, err = run(capsys, "serve", folder, "--host", "0.0.0.0")
    assert status == 2
    assert "error: host 0.0.0.0 can be reached from other machines: set a key" in err
    assert not served


def test_a_folder_without_a_model_is_refused(capsys, tmp_path, served):
    status, _, err = run(capsys, "serve", tmp_path)
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_packages_that_are_missing_are_named(capsys, folder, served, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "uvicorn" else find(name)
    )
    status, _, err = run(capsys, "serve", folder)
    assert status == 2
    assert "error: serve: uvicorn is not installed; install it with uv sync --extra serve" in err


def test_a_port_in_use_is_an_error_of_the_user(capsys, folder):
    with server.bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        status, _, err = run(capsys, "serve", folder, "--port", port)
    assert status == 2
    assert f"port {port} of 127.0.0.1 is in use" in err


def test_it_serves_until_it_is_stopped(capsys, folder, monkeypatch):
    monkeypatch.setattr(server.Server, "run", lambda self, sockets: sockets[0].close())
    assert run(capsys, "serve", folder, "--port", "0")[0] == 0
