"""Talk with a model: `python agi2_interactive.py FILE.toml`. The same as `agi2 chat`."""

import sys

from src.cli.main import main

if __name__ == "__main__":
    main(["chat", *sys.argv[1:]])
