"""Run the property tests on new examples, again and again, for a set time.

    uv run python tests/fuzz.py MINUTES [arguments for pytest]

Ends with 1 at the first example that fails, which is printed. Put it above the test as `@example`,
so that every run tries it from then on; `.hypothesis/` keeps it till then, for the next run.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
PYTEST = ("-m", "pytest", "-m", "hypothesis", "--hypothesis-profile=fuzz", "--no-cov", "-x", "-q")
NO_TESTS = 5


def main() -> int:
    """The exit status: 0 where no example has failed."""
    if len(sys.argv) < 2 or not sys.argv[1].replace(".", "", 1).isdigit():
        print(__doc__, file=sys.stderr)
        return 2
    end = time.monotonic() + 60 * float(sys.argv[1])
    rounds = 0
    while (left := end - time.monotonic()) > 0:
        command = [sys.executable, *PYTEST, *sys.argv[2:]]
        with subprocess.Popen(command, cwd=CHECKOUT) as run:
            try:
                status = run.wait(left)
            except subprocess.TimeoutExpired:
                run.terminate()
                break
        if status == NO_TESTS:
            print("these arguments select no property test", file=sys.stderr)
            return 2
        if status:
            print(
                f"round {rounds + 1} found the example above: add it as @example", file=sys.stderr
            )
            return 1
        rounds += 1
    print(f"{rounds} rounds without a failing example", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
