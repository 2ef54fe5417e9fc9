"""The GPU kernels equal PyTorch's operations; Triton's interpreter runs them on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="Triton comes with PyTorch for GPUs")

from src.nn import gpu_kernels

ROOT = Path(__file__).parents[2]
IGNORED = -100


def reference(logits, targets):
    """The sum of the losses, and their gradient of the logits, in float64."""
    exact = logits.double().requires_grad_()
    loss = F.cross_entropy(exact, targets, ignore_index=IGNORED, reduction="sum")
    loss.backward()
    return loss.detach(), exact.grad


def check_softmax_gradient(columns, dtype, device):
    torch.manual_seed(0)
    logits = 4 * torch.randn(7, columns, device=device)
    logits[:, -3:] = -torch.inf  # padding
    logits[3] += 1000.0
    logits = logits.to(dtype)
    targets = torch.tensor([0, columns - 4, IGNORED, columns // 2, 1, IGNORED, 2], device=device)
    loss, gradient = reference(logits, targets)
    found, replaced = gpu_kernels.softmax_gradient_(logits, targets)
    torch.testing.assert_close(found.double(), loss, rtol=1e-5, atol=1e-5)
    assert replaced is logits
    has_target = targets != IGNORED
    # A cast that truncates, as the interpreter's does, is wrong by the resolution.
    near = torch.finfo(dtype).resolution if dtype == torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(
        logits.double()[has_target], gradient[has_target], rtol=near, atol=near / 100
    )
    assert logits.isfinite().all()


def check_on_a_cpu():
    for dtype in (torch.float32, torch.bfloat16):
        for columns in (5, 4096, 5000):
            check_softmax_gradient(columns, dtype, "cpu")


def test_the_gradient_of_logits_is_that_of_the_loss():
    """In a process of its own: Triton reads the variable when it is imported."""
    command = "from tests.nn.test_gpu_kernels import check_on_a_cpu; check_on_a_cpu()"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", command], env=environment, cwd=ROOT, check=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [5, 5000, 50304])
def test_the_gradient_of_logits_on_a_gpu(columns, dtype):
    check_softmax_gradient(columns, dtype, "cuda")
