"""Run the property tests on new examples, round after round, for a set time.

    uv run python tests/fuzz.py MINUTES [arguments for pytest]

Each round has another order, so that the end of the time does not always fall on the same tests. A
test that fails is left out of later rounds. Ends with 1 if one has failed. Put the example that is
printed above the test as `@example`, so that every run tries it from then on; `.hypothesis/` keeps
it till then, for the next run.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
PYTEST = ("-m", "pytest", "-m", "hypothesis", "--hypothesis-profile=fuzz", "--no-cov", "-q")
FAILED = re.compile(r"(?:FAILED|ERROR) (tests/\S+?(?:\[.*?\])?)(?: - |\s*$)")
PASSED, SOME_FAILED, INTERRUPTED, NO_TESTS = 0, 1, 2, 5


def run_round(arguments: list[str], failed: list[str], seconds: float) -> int:
    """Run all property tests except `failed`, and append those that fail to it.

    Args:
        arguments: further arguments for pytest.
        failed: node ids of failed tests; changed in place.
        seconds: time limit, after which pytest is interrupted.

    Returns:
        The exit status of pytest.
    """
    command = [sys.executable, *PYTEST, *(f"--deselect={each}" for each in failed), *arguments]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        threading.Thread(target=interrupt, args=[run, seconds], daemon=True).start()
        for line in run.stdout:
            print(line, end="", flush=True)
            if found := FAILED.match(line):
                failed.append(found[1])
    return run.returncode


def interrupt(run: subprocess.Popen[str], seconds: float) -> None:
    """Send SIGINT to pytest after a timeout, so that it still reports the failures."""
    while True:
        try:
            run.wait(seconds)
            return
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGINT)
            seconds = 60  # retry: Python discards a KeyboardInterrupt raised in a callback


def main() -> int:
    """Run rounds until the time is up; return the exit status, 0 if no example failed."""
    if len(sys.argv) < 2 or not sys.argv[1].replace(".", "", 1).isdigit():
        print(__doc__, file=sys.stderr)
        return 2
    # Shells start background processes with SIGINT ignored, which pytest would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end = time.monotonic() + 60 * float(sys.argv[1])
    failed: list[str] = []
    rounds, status = 0, PASSED
    while status in (PASSED, SOME_FAILED) and (left := end - time.monotonic()) > 0:
        status = run_round(sys.argv[2:], failed, left)
        rounds += status in (PASSED, SOME_FAILED)
    if failed:
        print("failed; add the examples above as @example:", *failed, sep="\n", file=sys.stderr)
        return 1
    if status == NO_TESTS:
        print("these arguments select no property test", file=sys.stderr)
    if status not in (PASSED, INTERRUPTED):
        return status
    print(f"{rounds} complete rounds without a failing example", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
