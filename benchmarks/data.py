"""From text to tokens: memory, speed, the time to the first step, and the loader, next to peers.

python benchmarks/data.py [--megabytes 2000] [--peer-megabytes 200] [--vocab-size 16384]
    [--text FILE] [--seed 0] [--peers PYTHON] [--folder FOLDER] [--tiny] [--json FILE]

The corpus is that of make_corpus.py. Each measurement is a process of its own:

- cold: the text is read, split, a tokenizer is trained, all is tokenized, and one step is trained;
- tokenizer given: the same with that tokenizer;
- warm: again, with the tokens of the run before; then the loader alone, and training alone;
- peers that are installed, with the same tokenizer, on a smaller corpus of the same kind, which
  AGI2 tokenizes in the same run, too: nanoGPT's way (`datasets`, `tiktoken`, a memory map),
  litdata, `tokenizers` and `tiktoken` alone. --peers names the Python that has them.

On a busy machine compare the MB per CPU second.
"""

import base64
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from common import parser, report, run_child
from make_corpus import make_corpus

# Rows and context of a batch of the loader; a small model, which trains fast.
LOADED = (16, 1024)
SHAPE = {"model_layer": 4, "model_head": 4, "model_embd": 128, "model_positions": 128}
SECONDS = 3.0  # of the loader and of training


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def cpu_seconds() -> float:
    """Return the CPU time of this process and of those that it has waited for."""
    every = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in every)


def speed(size: int, start: float, cpu_before: float) -> dict[str, float]:
    """Return how fast `size` bytes were read since two points in time."""
    seconds, used = time.perf_counter() - start, cpu_seconds() - cpu_before
    return {
        "seconds": seconds,
        "MB/s": size / 1e6 / seconds,
        "MB per CPU s": size / 1e6 / used,
    }


def peak() -> float:
    """Return the peak memory of this process in GB."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (1e9 if sys.platform == "darwin" else 1e6)


# What a child measures of AGI2


def run(folder: str, cache: str, tokenizer: str, vocab_size: str, is_warm: str) -> dict[str, Any]:
    """Prepare the text and train one step; if warm, also measure the loader and training."""
    started = float(os.environ["STARTED"])
    from src.config_loader import make_config
    from src.train.setup import prepare

    keys = {
        "sources": [folder],
        "model_name": "benchmark",
        "tokenizer": tokenizer,
        "vocab_size": int(vocab_size),
        "token_cache": cache,
        "optimizer": "adamw",
        **SHAPE,
    }
    found = {"imports, GB": peak(), "imports, s": time.time() - started}
    config = make_config(keys)
    start, before = time.perf_counter(), cpu_seconds()
    data = prepare(config)
    found |= speed(size_of(Path(folder)), start, before)
    found["documents"] = data.documents
    found["peak GB"] = peak()
    train = trained(config, data)
    train()
    found["first step, s"] = time.time() - started
    if int(is_warm):
        found["training, tok/s"] = SHAPE["model_positions"] * config.batch_size * rate(train)
        found["loader, tok/s"] = LOADED[0] * LOADED[1] * rate(loaded(data))
        found["loader / training"] = found["loader, tok/s"] / found["training, tok/s"]
    corpus = data.corpus
    assert corpus is not None
    return found | {"tokens": len(corpus.train) + len(corpus.val), "folder": str(corpus.folder)}


def trained(config: Any, data: Any) -> Any:
    """Return a training step of a small model on the text."""
    import torch

    from src.data.batches import EpochBatches
    from src.model import GPT2Model
    from src.train.loss import NextTokenLoss
    from src.train.optimizer import make_optimizers
    from src.train.step import accumulate_gradients, apply_gradients

    config = config.changed(vocab_size=data.tokenizer.vocab_size)
    model = GPT2Model(config)
    optimizers, loss = make_optimizers(model, config), NextTokenLoss(model)
    batches = EpochBatches(data.train_data, config.batch_size, 0)
    steps = iter(range(10**9))

    def step() -> None:
        batch = batches.batch(next(steps))
        accumulate_gradients(loss, batch, torch.device("cpu"), precision=torch.float32).item()
        apply_gradients(optimizers, 1.0)

    return step


def loaded(data: Any) -> Any:
    """Return what loads a batch, shuffled over the whole text."""
    from src.data.batches import EpochBatches
    from src.data.windows import TokenWindows

    windows = TokenWindows(data.train_data.tokens, LOADED[1] + 1, LOADED[1])
    batches = EpochBatches(windows, LOADED[0], 0)
    steps = iter(range(10**9))
    return lambda: batches.batch(next(steps))


def rate(work: Any) -> float:
    """Return how often a function runs per second."""
    work()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        work()
        count += 1
    return count / (time.perf_counter() - start)


# What a child measures of peers, in a Python that may not have PyTorch. Each writes train.bin.


def documents_of(folder: Path) -> Iterator[str]:
    """Yield the documents; the long line in pieces of a million characters, which suits peers."""
    for path in sorted(folder.glob("*.jsonl")):
        with open(path, encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)["text"]
    with open(folder / "line.txt", encoding="utf-8") as file:
        while piece := file.read(10**6):
            yield piece


def in_batches(documents: Iterable[str], size: int = 1000) -> Iterator[list[str]]:
    documents = iter(documents)
    while batch := list(islice(documents, size)):
        yield batch


def tiktoken_encoding(vocabulary: str) -> Any:
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    parts = json.loads(Path(vocabulary, "pattern.json").read_text())
    ranks = load_tiktoken_bpe(str(Path(vocabulary, "ranks.tiktoken")))
    return tiktoken.Encoding("benchmark", pat_str=parts, mergeable_ranks=ranks, special_tokens={})


def by_tokenizers(folder: Path, vocabulary: str, out: Path) -> None:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(Path(vocabulary, "tokenizer.json")))
    with open(out / "train.bin", "wb") as file:
        for batch in in_batches(documents_of(folder)):
            for each in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                file.write(np.array(each.ids, np.uint16).data)


def by_tiktoken(folder: Path, vocabulary: str, out: Path) -> None:
    encoding = tiktoken_encoding(vocabulary)
    cores = os.cpu_count() or 1
    with open(out / "train.bin", "wb") as file:
        for batch in in_batches(documents_of(folder)):
            for ids in encoding.encode_ordinary_batch(batch, num_threads=cores):
                file.write(np.array(ids, np.uint16).data)


def by_nanogpt(folder: Path, vocabulary: str, out: Path) -> None:
    """Tokenize as nanoGPT's prepare.py for OpenWebText does."""
    from datasets import concatenate_datasets, load_dataset

    encoding = tiktoken_encoding(vocabulary)
    cores = os.cpu_count() or 1
    files = [str(path) for path in sorted(folder.glob("*.jsonl"))]
    parts = [load_dataset("json", data_files=files, split="train")]
    parts.append(load_dataset("text", data_files=[str(folder / "line.txt")], split="train"))

    def encode(example: dict[str, str]) -> dict[str, Any]:
        ids = encoding.encode_ordinary(example["text"])
        return {"ids": ids, "len": len(ids)}

    mapped = concatenate_datasets(parts).map(encode, remove_columns=["text"], num_proc=cores)
    shape = (int(np.sum(mapped["len"], dtype=np.uint64)),)
    tokens = np.memmap(out / "train.bin", np.uint16, "w+", shape=shape)
    at, shards = 0, min(1024, len(mapped))
    for index in range(shards):
        shard = mapped.shard(shards, index, contiguous=True).with_format("numpy")
        ids = np.concatenate(shard["ids"][:])
        tokens[at : at + len(ids)] = ids
        at += len(ids)
    tokens.flush()


def by_litdata(folder: Path, vocabulary: str, out: Path) -> None:
    from functools import partial

    from litdata import TokensLoader, optimize

    ranges = [(str(folder), vocabulary, part, PARTS) for part in range(PARTS)]
    optimize(
        partial(encode_part),
        ranges,
        str(out / "chunks"),
        chunk_bytes="64MB",
        item_loader=TokensLoader(),
        num_workers=os.cpu_count() or 1,
    )


PARTS = 16


def encode_part(part: tuple[str, str, int, int]) -> Iterator[Any]:
    """Yield the ids of every n-th document, for litdata."""
    import torch

    folder, vocabulary, first, step = part
    encoding = tiktoken_encoding(vocabulary)
    for text in islice(documents_of(Path(folder)), first, None, step):
        yield torch.tensor(encoding.encode_ordinary(text), dtype=torch.int32)


PEERS = {
    "tokenizers alone": by_tokenizers,
    "tiktoken alone": by_tiktoken,
    "nanoGPT's way: datasets, tiktoken": by_nanogpt,
    "litdata, tiktoken": by_litdata,
}


def measure_peer(name: str, folder: str, vocabulary: str, out: str) -> dict[str, Any]:
    start, before = time.perf_counter(), cpu_seconds()
    try:
        PEERS[name](Path(folder), vocabulary, Path(out))
    except ImportError as error:
        return {"note": f"not installed: {error.name}"}
    found = speed(size_of(Path(folder)), start, before)
    # litdata's are of 32 bits.
    tokens = sum(path.stat().st_size for path in Path(out).rglob("*.bin"))
    return found | {"tokens": tokens // (4 if name.startswith("litdata") else 2)}


# The parent


def child(*arguments: str | Path, python: str = sys.executable) -> dict[str, Any]:
    """Run this script as a child; return what it prints last, and its peak memory.

    That of AGI2 is the peak before a step is trained.
    """
    os.environ["STARTED"] = str(time.time())
    _, used, output = run_child([python, __file__, *map(str, arguments)])
    return {"peak GB": used, **json.loads(output.splitlines()[-1])}


def measure(corpus: Path, place: Path, label: str, vocab_size: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of AGI2 on a corpus; the tokenizer that was trained stays in `place`."""
    base = {"corpus": label}
    first = child("--child", "run", corpus, place / "cold", "bpe", vocab_size, 0)
    vocabulary = place / "vocabulary"
    if not vocabulary.exists():
        vocabulary.mkdir()
        shutil.copy(Path(first["folder"]) / "tokenizer.json", vocabulary)
    yield base | {"what": "cold, tokenizer trained"} | first
    shutil.rmtree(place / "cold")
    for what, is_warm in (("cold, tokenizer given", 0), ("warm", 1)):
        found = child("--child", "run", corpus, place / "given", vocabulary, vocab_size, is_warm)
        yield base | {"what": what} | found
    shutil.rmtree(place / "given")


def write_ranks(vocabulary: Path) -> None:
    """Write the vocabulary as tiktoken reads it, without the end-of-text token, which is id 0."""
    from src.tokenization.byte_level import token_to_bytes
    from src.tokenization.tokenizer_json import KNOWN_PATTERNS

    vocab = json.loads((vocabulary / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    names = sorted(vocab, key=vocab.__getitem__)[1:]
    lines = (
        f"{base64.b64encode(token_to_bytes(name)).decode()} {rank}\n"
        for rank, name in enumerate(names)
    )
    (vocabulary / "ranks.tiktoken").write_text("".join(lines))
    (vocabulary / "pattern.json").write_text(json.dumps(KNOWN_PATTERNS[0]))


def peers(corpus: Path, place: Path, label: str, python: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of the peers that are installed."""
    write_ranks(place / "vocabulary")
    os.environ["TIKTOKEN_CACHE_DIR"] = ""  # no copy of the vocabulary
    os.environ |= {"HF_HOME": str(place / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    for name in PEERS:
        out = place / "out"
        out.mkdir()
        arguments = ("--child", "peer", name, corpus, place / "vocabulary", out)
        try:
            found = child(*arguments, python=python)
        except SystemExit as error:  # the others are measured all the same
            found = {"note": str(error).splitlines()[0]}
        yield {"corpus": label, "what": name} | found
        shutil.rmtree(out)
        shutil.rmtree(place / "hf", ignore_errors=True)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        kind, *arguments = sys.argv[2:]
        print(json.dumps({"run": run, "peer": measure_peer}[kind](*arguments)))
        return
    options = parser(__doc__)
    options.add_argument("--megabytes", type=float, default=2000)
    options.add_argument("--peer-megabytes", type=float, default=200)
    options.add_argument("--vocab-size", type=int, default=16384)
    options.add_argument("--text", type=Path, help="a UTF-8 text whose words are used")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--peers", default=sys.executable, metavar="PYTHON")
    options.add_argument("--folder", type=Path, help="where the corpus is made for a while")
    options.add_argument("--tiny", action="store_true", help="1 MB, to try it")
    given = options.parse_args()
    if given.tiny:
        given.megabytes = given.peer_megabytes = 1
        given.vocab_size = 512
    text = given.text.read_text(encoding="utf-8") if given.text else ""
    rows: list[dict[str, Any]] = []
    if given.folder is not None:
        given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        place = Path(name)
        for size in dict.fromkeys([given.megabytes, given.peer_megabytes]):
            corpus, label = place / "corpus", f"{size:g} MB"
            make_corpus(corpus, size * 1e6, given.seed, text)
            found = measure(corpus, place, label, given.vocab_size)
            if size == given.peer_megabytes:
                found = chain(found, peers(corpus, place, label, given.peers))
            for row in found:
                row.pop("folder", None)
                print(json.dumps(row), file=sys.stderr)  # as the whole may take long
                rows.append(row)
            shutil.rmtree(corpus)
    report(rows, given.json)


if __name__ == "__main__":
    main()
