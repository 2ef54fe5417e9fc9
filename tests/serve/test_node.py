"""OpenAI's client for JavaScript, where node and the package `openai` are installed.

`NODE_PATH` names the folder `node_modules` of another place than the usual ones.
"""

import json
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.serve.clients import wait_until
from tests.serve.test_server import stats

SCRIPT = Path(__file__).parent / "openai_client.cjs"
HTTP = httpx.Client(timeout=60, verify=False)


def has_package():
    node = shutil.which("node")
    found = node and subprocess.run([node, "-e", 'require("openai")'], capture_output=True)
    return bool(found) and found.returncode == 0


@pytest.mark.skipif(not has_package(), reason="needs node and `npm install openai` (NODE_PATH)")
def test_the_client_for_javascript_works_unchanged(server):
    run = subprocess.run(
        ["node", SCRIPT, server.url, "chatty"], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    body = {"model": "chatty", "seed": 3, "ignore_eos": True}
    text = {**body, "prompt": "hello", "max_tokens": 8, "n": 2, "logprobs": 2}
    expected = HTTP.post(f"{server.url}/v1/completions", json=text).json()
    assert found["completion"]["choices"] == expected["choices"]
    assert found["completionStream"] == expected["choices"][0]["text"]
    reply = found["chat"]["choices"][0]["message"]["content"]
    assert reply
    assert found["chatStream"] == reply
    assert found["chatHelper"]["choices"][0]["message"]["content"] == reply
    assert found["chatUsage"]["completion_tokens"] == 8
    assert found["response"]["output_text"] == reply
    assert found["responseStream"] == reply
    assert found["responseHelper"]["output_text"] == reply
    assert found["models"] == ["plain", "chatty"]
    assert found["model"]["id"] == "chatty"
    for base64, floats in zip(found["base64"]["data"], found["floats"]["data"], strict=True):
        assert base64["embedding"] == pytest.approx(floats["embedding"], abs=1e-6)
    assert found["error"] == {"status": 400, "param": "n", "code": "invalid_value"}
    wait_until(lambda: stats(server, "chatty").running == 0)
