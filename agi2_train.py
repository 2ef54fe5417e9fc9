"""Train a model: `python agi2_train.py FILE.toml`. The same as `agi2 train`."""

import sys

from src.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
