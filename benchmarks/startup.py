"""Time from starting a command to its first output, compared with `import torch` alone.

python benchmarks/startup.py GPT2_VOCABULARY [--rounds 7] [--json FILE]

GPT-2 124M, random weights, greedy. Each round runs a new process that only imports PyTorch, then
`agi2_generate.py` in fp32 and int8 until the first visible character after the prompt; medians. The
files are in the page cache. GPT2_VOCABULARY is a folder with vocab.json and merges.txt.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, parser, report, save_random_gpt2

PROMPT = "Call me Ishmael."
IMPORT = 'import torch; print("done", flush=True)'
KINDS = {"fp32": "none", "int8": "int8"}


def seconds_to_text(command: list[str], after: str = "") -> float:
    """Return the seconds until a command prints a visible character after the text `after`."""
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        shown = b""
        while not shown.decode("utf-8", "ignore")[len(after) :].strip():
            if not (more := os.read(child.stdout.fileno(), 1 << 16)):
                raise SystemExit(f"{' '.join(command)} showed nothing but {shown!r}")
            shown += more
        seconds = time.perf_counter() - start
        child.kill()
    return seconds


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("vocabulary", type=Path)
    options.add_argument("--rounds", type=int, default=7)
    given = options.parse_args()
    bare: list[float] = []
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as place:
        keys = {"output_dir": place, "model_name": "gpt2", "temperature": 0.0}
        folder = Path(place) / "gpt2"
        save_random_gpt2(given.vocabulary, folder, **keys)
        command = ["agi2_generate.py", str(folder / "config.toml"), PROMPT, "--quiet"]
        for _ in range(given.rounds):
            bare.append(seconds_to_text(["-c", IMPORT]))
            for kind, quantize in KINDS.items():
                each = [*command, "--set", f"quantize={quantize}"]
                found[kind].append(seconds_to_text(each, PROMPT))
    floor = statistics.median(bare)
    rows = [{"what": "import torch", "seconds": floor, "fastest": min(bare)}]
    rows += [
        {
            "what": f"the first word, {kind}",
            "seconds": statistics.median(seconds),
            "fastest": min(seconds),
            "over import torch": statistics.median(seconds) - floor,
        }
        for kind, seconds in found.items()
    ]
    report(rows, given.json)


if __name__ == "__main__":
    main()
