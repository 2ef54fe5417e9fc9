"""Log and progress of calls from Python, in new processes: default, `verbose`, own handlers."""

import pytest

from tests.conftest import make_text
from tests.processes import needs_fork, run_python

pytestmark = needs_fork

# Each part's standard error follows a line that names it.
CODE = """
import contextlib, logging, sys
from pathlib import Path
import torch
from src import *
from src import console
from src.evaluation.loss import evaluate_text

folder = Path(sys.argv[1])
tokenizer = BasicTokenizer()
tokenizer.fit([(folder / "corpus.txt").read_text()])
log = logging.getLogger("agi2")

def model():
    torch.manual_seed(0)
    return GPT2Model(GPT2Config(tokenizer.vocab_size, 16, d_model=16, n_layers=1, n_heads=2))

def train(**options):
    before = log.handlers[:], log.level, log.propagate, logging.root.handlers[:]
    options = {"epochs": 2, "output_dir": folder / "trained", "sample_tokens": 0, **options}
    train_model(model(), tokenizer, folder / "corpus.txt", **options)
    assert before == (log.handlers, log.level, log.propagate, logging.root.handlers)

def part(name):
    print(f"== {name}", file=sys.stderr)

part("default")
train()
part("quiet")
train(verbose=False)
part("again")
train()
part("epoch")
batches = [torch.randint(tokenizer.vocab_size, (4, 9)) for _ in range(3)]
trained = model()
train_epoch(trained, batches, torch.optim.SGD(trained.parameters(), 0.1))
part("quiet epoch")
train_epoch(trained, batches, torch.optim.SGD(trained.parameters(), 0.1), verbose=False)
part("quiet calls")
def work(**options):
    fitted = BPETokenizer(300)
    fitted.fit(folder / "corpus.txt", **options)
    data = TextDataset(folder / "corpus.txt", tokenizer, 9, **options)
    evaluate(trained, data, tokenizer, **options)
    evaluate_text(trained, "the whale", tokenizer, 4, **options)
    save_model(model(), tokenizer, Config(), folder / "saved")
    prepare_for_generation(load_model(folder / "saved").model, **options)
work(verbose=False)
part("calls")
before = log.handlers[:], log.level, log.propagate
console._LOG_DELAY = 1e9
work()
assert before == (log.handlers, log.level, log.propagate)
part("generated")
generate_text(trained, "the", 3, tokenizer=tokenizer)
part("level")
log.setLevel(logging.WARNING)
train()
log.setLevel(logging.NOTSET)
part("root")
logging.basicConfig(format="root %(message)s")
train()
part("root quiet")
train(verbose=False)
part("own")
logging.root.handlers.clear()
handler = logging.StreamHandler()
handler.setFormatter(logging.Formatter("own %(message)s"))
log.addHandler(handler)
log.setLevel(logging.INFO)
train()
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("host")
    (folder / "corpus.txt").write_text(make_text(), encoding="utf-8")
    done = run_python("-c", CODE, folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    found = {}
    for line in done.stderr.splitlines():
        if line.startswith("== "):
            found[line[3:]] = shown = []
        else:
            shown.append(line)
    return found


@pytest.mark.parametrize(
    ("part", "prefix"), [("default", ""), ("again", ""), ("root", "root "), ("own", "own ")]
)
def test_training_shows_its_progress_once(parts, part, prefix):
    lines = parts[part]
    for number in (1, 2):
        assert sum(line.startswith(f"{prefix}epoch {number}") for line in lines) == 1
    assert all(line.startswith(prefix) for line in lines)
    text = "\n".join(lines)
    for expected in ("train loss", "step 10/", "tok/s", " left", "bits per byte", "memory"):
        assert expected in text


@pytest.mark.parametrize(
    "part", ["quiet", "quiet epoch", "quiet calls", "generated", "root quiet", "level"]
)
def test_what_is_asked_to_be_quiet_shows_nothing(parts, part):
    assert parts[part] == []


def test_an_epoch_shows_its_loss(parts):
    assert [line[:18] for line in parts["epoch"]] == ["epoch  train loss "]


def test_other_calls_show_what_they_read(parts):
    assert len(parts["calls"]) == 1
    assert parts["calls"][0].startswith("read ")
