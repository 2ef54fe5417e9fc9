"""The CPU kernels compiled for other processors: the same numbers, bit for bit."""

import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.processes import CHECKOUT

KERNELS = CHECKOUT / "src" / "nn"
PROGRAM = CHECKOUT / "tests" / "nn" / "kernels_main.c"
# As in setup.py; -O1 is compiled in a third of the time.
OPTIONS = ("-O1", "-fno-trapping-math", "-ffp-contract=off", "-fopenmp", "-static")
AVX2 = ("-mavx2", "-mfma")
ARM = ("aarch64-linux-gnu-gcc",)
COMMANDS = {
    "AVX2": ("gcc", *AVX2),
    "AVX-512": ("gcc", *AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "vnni"))),
    "Arm": ARM,
    "Arm with dot products": (*ARM, "-march=armv8.2-a+dotprod"),
}


def can_run(processor):
    if platform.machine() != "x86_64" or not shutil.which(COMMANDS[processor][0]):
        return False
    if processor.startswith("Arm"):
        return shutil.which("qemu-aarch64") is not None
    flags = subprocess.run(
        ["grep", "-m1", "^flags", "/proc/cpuinfo"], capture_output=True, text=True
    )
    return ("avx512_vnni" if processor == "AVX-512" else "avx2") in flags.stdout


def results(processor, folder):
    """What the kernels compute from the same pseudo-random numbers, as bytes."""
    program = folder / processor
    command = [
        *COMMANDS[processor],
        *OPTIONS,
        f"-I{KERNELS}",
        str(PROGRAM),
        "-o",
        str(program),
        "-lm",
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    emulator = ["qemu-aarch64"] if processor.startswith("Arm") else []
    return subprocess.run(
        [*emulator, str(program)], check=True, capture_output=True, timeout=600
    ).stdout


def test_every_processor_computes_the_same(tmp_path):
    """With fused multiply-add, whatever the width of its vectors, however it multiplies int8."""
    processors = [processor for processor in COMMANDS if can_run(processor)]
    if len(processors) < 2:
        pytest.skip("needs gcc and AVX-512 with VNNI, or aarch64-linux-gnu-gcc and qemu-aarch64")
    with ThreadPoolExecutor(2) as pool:
        outputs = pool.map(lambda each: results(each, tmp_path), processors)
        found = dict(zip(processors, outputs, strict=True))
    assert len(found[processors[0]]) > 100_000
    assert [each for each in processors if found[each] != found[processors[0]]] == []
