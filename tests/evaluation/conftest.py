import pytest

from src.training import train_from_config


@pytest.fixture
def run(tiny_run):
    return train_from_config(tiny_run(eval_interval=4, sample_tokens=8))
