"""Export of a trained model to Hugging Face, GGUF or ONNX."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from ..arguments import checked
from ..command_line import command_line
from ..console import show_progress, visible
from ..errors import AGI2Error
from ..utils import atomic_folder
from .run_dir import WEIGHTS, check_unsharded

# Each format, with the packages that it needs in addition to AGI2's own dependencies.
FORMATS: dict[str, tuple[str, ...]] = {
    "hf": (),
    "gguf": ("gguf",),
    "onnx": ("onnx", "onnxscript"),
}
QUANTIZATIONS = ("f16", "q8_0", "q4_0")


def check_export(
    run: Path,
    out: Path,
    format: str = "hf",
    quantize: str | None = None,
    kv_cache: bool = False,
) -> None:
    """Check the arguments of `export_model`, without importing PyTorch.

    Raises:
        AGI2Error: if there is no model, a name is unknown, a package is missing, or `out` exists.
    """
    if format not in FORMATS:
        raise AGI2Error(f"format must be one of {', '.join(FORMATS)}, not {format!r}")
    if quantize is not None and (format != "gguf" or quantize not in QUANTIZATIONS):
        known = ", ".join(QUANTIZATIONS)
        raise AGI2Error(f"quantize is for format gguf only, and one of {known}: not {quantize!r}")
    if kv_cache and format != "onnx":
        raise AGI2Error(f"kv_cache is for format onnx only, not {format}")
    for package in FORMATS[format]:
        if importlib.util.find_spec(package) is None:
            raise AGI2Error(
                f"format {format} needs the package {package}, which is not installed: install it "
                f"with uv sync --extra interop or pip install {package}"
            )
    check_not_exists(out)
    check_unsharded(run)
    if not os.path.isfile(run / WEIGHTS):
        raise AGI2Error(f"{run}: no trained model there; {command_line('list')} shows the runs")


@checked
def export_model(
    run: str | Path,
    out: str | Path,
    format: str = "hf",
    quantize: str | None = None,
    *,
    kv_cache: bool = False,
    verbose: bool = True,
) -> None:
    """Export a trained model; an existing file or folder is never overwritten.

    Args:
        run: folder of the run or model.
        out: the folder to create for `hf`, the file to create for the other formats.
        format: `hf` (Hugging Face `transformers`), `gguf` (llama.cpp) or `onnx`.
        quantize: for `gguf` only: `f16`, `q8_0` (int8) or `q4_0` (int4) matrices.
        kv_cache: for `onnx` only: whether the graph has a KV cache as an input and an output.
        verbose: whether to show progress (see `console.visible`).

    Raises:
        AGI2Error: if the model cannot be loaded, the format does not support its architecture, a
            package is missing, or `out` exists.
    """
    run, out = Path(run), Path(out)
    check_export(run, out, format, quantize, kv_cache)
    with visible(verbose), show_progress(f"exporting {run}"):
        _export(run, out, format, quantize, kv_cache)


def _export(run: Path, out: Path, format: str, quantize: str | None, kv_cache: bool) -> None:
    # Deferred: these import PyTorch, which takes seconds, and wrong arguments fail without it.
    from .gguf import export_gguf
    from .huggingface import export_huggingface
    from .model_dir import load_model
    from .onnx import export_onnx

    trained = load_model(run)
    if format == "hf":
        with atomic_folder(out) as temporary:
            export_huggingface(trained.model, trained.tokenizer, temporary, trained.config)
    elif format == "gguf":
        export_gguf(trained.model, trained.tokenizer, out, quantize)
    else:
        export_onnx(trained.model, out, kv_cache)


def check_not_exists(out: Path) -> None:
    """Check that a path does not exist, so that nothing is overwritten.

    Raises:
        AGI2Error: if it exists, even as a broken symbolic link.
    """
    if os.path.lexists(out):
        raise AGI2Error(f"{out} exists: name another place, or move it away")
