"""`python -m agi2` or, in a checkout, `python -m src`: the command `agi2`."""

from .cli.main import main

if __name__ == "__main__":
    main()
