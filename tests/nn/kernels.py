"""Tiny models with the CPU kernels, and random matrices."""

import pytest
import torch

from src.inference.prepare import prepare_for_generation
from src.nn.cpu_library import LIBRARY
from tests.tiny_models import random_model

WIDTHS = {"d_model": 64, "d_ff": 192, "n_heads": 4, "n_layers": 3, "max_seq_len": 60}


def random(*shape, seed=0, std=1.0):
    return torch.empty(*shape).normal_(std=std, generator=torch.Generator().manual_seed(seed))


def prepared_model(changes, quantize):
    return prepare_for_generation(random_model(std=0.1, **{**WIDTHS, **changes}), quantize)


needs_library = pytest.mark.skipif(LIBRARY is None, reason="no C compiler at installation")
