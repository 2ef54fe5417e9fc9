"""Go on from text: `python agi2_generate.py FILE.toml "prompt"`. The same as `agi2 generate`."""

import sys

from src.cli.main import main

if __name__ == "__main__":
    main(["generate", *sys.argv[1:]])
