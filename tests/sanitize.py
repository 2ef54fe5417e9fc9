"""Run the tests of the C code in `src/nn` under AddressSanitizer and UndefinedBehaviorSanitizer.

    uv run python tests/sanitize.py [tests and options for pytest, in place of these]

Builds an instrumented library in a temporary folder, checks that an out-of-bounds access is
detected, then runs the tests that call the library. Exits with 3 and one line if there is no
compiler with sanitizers.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
# The sources of each library.
LIBRARIES = {
    "_cpu_kernels": ("src/nn/cpu_kernels.c",),
    "_cpu_kernels_avx512": ("src/nn/cpu_kernels.c",),
    "_bpe": ("src/nn/bpe_encode.c", "src/nn/bpe_count.c", "src/nn/bpe_merge.c"),
    "_shingles": ("src/nn/shingles.c",),
}
FLAGS = (
    *("-O1", "-g", "-fno-omit-frame-pointer", "-fno-trapping-math", "-ffp-contract=off"),
    *("-fopenmp", "-shared", "-fPIC"),
    *("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"),
)
# As in setup.py.
AVX2 = ("-mavx2", "-mfma")
AVX512 = (*AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "vnni")))
TESTS = (
    "tests/data/test_dedup.py",
    "tests/nn/test_bpe_library.py",
    "tests/nn/test_cpu_kernels.py",
    "tests/nn/test_quantized.py",
    "tests/nn/test_shingle_library.py",
    "tests/nn/test_training_kernels.py",
    "tests/inference/test_prepare.py",
    "tests/test_ffn.py",
    "tests/tokenization/test_bpe_engine.py",
    "tests/tokenization/test_bpe_training.py",
)
# Tests that do not call the library, or start processes without the sanitizers.
WITHOUT_C = ("default_device", "stack", "no_longer_is", "keeps_no")
NONE_HERE = 3
BEYOND_THE_END = """
import torch
from src.nn.cpu_library import LIBRARY
assert LIBRARY is not None, "the library with checks does not load"
x, out = torch.ones(8), torch.ones(4096)
LIBRARY.agi2_gelu(8, x.data_ptr(), out.data_ptr(), 0, 1)
print("within", flush=True)
LIBRARY.agi2_gelu(4096, x.data_ptr(), out.data_ptr(), 0, 1)
print("beyond", flush=True)
"""


def compiler() -> str:
    """Return the name of the C compiler."""
    return os.environ.get("CC") or "gcc"


def preloaded() -> list[str]:
    """Return the sanitizers' runtime libraries (for LD_PRELOAD), or an empty list."""
    found = []
    for name in ("libasan.so", "libubsan.so"):
        asked = [compiler(), f"-print-file-name={name}"]
        try:
            path = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return []
        if not os.path.isfile(path):  # gcc prints the bare name if it does not have the library
            return []
        found.append(os.path.realpath(path))
    return found


def build(folder: Path) -> bool:
    """Compile the instrumented libraries into a folder; return whether they compiled."""
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    for name, sources in LIBRARIES.items():
        if name.endswith("_avx512") and not is_x86:
            continue
        options = () if not is_x86 else AVX512 if name.endswith("_avx512") else AVX2
        target = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
        command = [compiler(), *FLAGS, *options, *sources, "-o", str(target), "-lm"]
        if subprocess.run(command, cwd=CHECKOUT, check=False).returncode:
            return False
    return True


def main() -> int:
    """Run the tests; return the exit status, 0 if all pass without a sanitizer error."""
    libraries = preloaded()
    with tempfile.TemporaryDirectory() as folder:
        if not libraries or not build(Path(folder)):
            print(f"{compiler()} has no AddressSanitizer and UBSan here", file=sys.stderr)
            return NONE_HERE
        environment = {
            **os.environ,
            "AGI2_NATIVE": folder,
            "LD_PRELOAD": " ".join(libraries),
            "ASAN_OPTIONS": "detect_leaks=0",  # Python does not free all memory at exit
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "OMP_NUM_THREADS": "2",
        }
        command = [sys.executable, "-c", BEYOND_THE_END]
        done = subprocess.run(
            command, cwd=CHECKOUT, env=environment, capture_output=True, text=True
        )
        if done.stdout != "within\n" or "AddressSanitizer" not in done.stderr:
            print(done.stderr, "the checks do not work", sep="\n", file=sys.stderr)
            return 1
        tests = sys.argv[1:] or [*TESTS, "-k", " and ".join(f"not {each}" for each in WITHOUT_C)]
        command = [sys.executable, "-m", "pytest", *tests, "--hypothesis-profile=few"]
        command += ["-n", "0", "--no-cov", "-x", "-q"]
        return subprocess.run(command, cwd=CHECKOUT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
