import pytest


@pytest.fixture
def run(copied_run):
    return copied_run("run", eval_interval=4, sample_tokens=8)
