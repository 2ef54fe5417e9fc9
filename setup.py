"""What pyproject.toml cannot say: how the C code in `src/nn` is compiled, where a compiler can."""

import platform
from glob import glob

from setuptools import Extension, setup

is_x86 = platform.machine() in ("x86_64", "AMD64")
is_arm = platform.machine() in ("aarch64", "arm64")
# Processors since 2013 have these instructions; on others the library is not loaded.
AVX2 = ["-mavx2", "-mfma"]
# Servers since 2019 and many laptops have these, too; `nn/cpu_library.py` asks the processor.
AVX512 = [*AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "vnni"))]
DOTPROD = ["-march=armv8.2-a+dotprod"]


def kernels(name: str, options: list[str]) -> Extension:
    """Return the library of `cpu_kernels.c`, compiled with these options, too."""
    return Extension(
        f"agi2.nn._{name}",
        ["src/nn/cpu_kernels.c"],
        depends=sorted(glob("src/nn/*kernel*.[ch]")),
        # OpenMP is compiled for, but not linked: PyTorch has brought its own, and one pool of
        # threads is enough.
        extra_compile_args=[
            *("-O3", "-fno-trapping-math", "-ffp-contract=off", "-fopenmp"),
            *options,
        ],
        libraries=["m"],
        optional=True,  # without it everything works, more slowly
    )


setup(
    ext_modules=[
        kernels("cpu_kernels", AVX2 if is_x86 else []),
        *([kernels("cpu_kernels_avx512", AVX512)] if is_x86 else []),
        *([kernels("cpu_kernels_dotprod", DOTPROD)] if is_arm else []),
        Extension(
            "agi2.nn._bpe",
            ["src/nn/bpe_encode.c", "src/nn/bpe_count.c", "src/nn/bpe_merge.c"],
            depends=["src/nn/bpe.h", "src/nn/bpe_trainer.h"],
            extra_compile_args=["-O3"],
            optional=True,
        ),
        Extension(
            "agi2.nn._shingles",
            ["src/nn/shingles.c"],
            depends=["src/nn/sha256.h"],
            extra_compile_args=["-O3"],
            optional=True,
        ),
    ]
)
