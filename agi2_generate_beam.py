"""Search with beams: `python agi2_generate_beam.py FILE.toml "prompt"`. The same as `agi2 beam`."""

import sys

from src.cli.main import main

if __name__ == "__main__":
    main(["beam", *sys.argv[1:]])
