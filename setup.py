"""What pyproject.toml cannot say: how the C code in `src/nn` is compiled, where a compiler can."""

import platform

from setuptools import Extension, setup

# Processors since 2013 have these instructions; on others the library is not loaded.
instructions = ["-mavx2", "-mfma"] if platform.machine() in ("x86_64", "AMD64") else []

setup(
    ext_modules=[
        Extension(
            "agi2.nn._cpu_kernels",
            ["src/nn/cpu_kernels.c"],
            # OpenMP is compiled for, but not linked: PyTorch has brought its own, and one pool of
            # threads is enough.
            extra_compile_args=[
                *("-O3", "-fno-trapping-math", "-ffp-contract=off", "-fopenmp"),
                *instructions,
            ],
            libraries=["m"],
            optional=True,  # without it everything works, more slowly
        ),
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
