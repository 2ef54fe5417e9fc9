"""Requests that schemathesis makes from `/openapi.json`, against `agi2 serve` with a tiny model.

python benchmarks/fuzz_api.py [--requests 10000] [--seconds 3000] [--command st]

Runs schemathesis (`uv tool install schemathesis`), round after round with other seeds, until the
server has answered as many requests. No response may have a status from 500 on, or another shape
than its description; no request that the description refuses may be accepted.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from urllib.request import urlopen

from common import parser, report
from serving import ServerProcess, agi2_command

from serve import prepare_tiny

CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_headers_conformance", "response_schema_conformance", "negative_data_rejection"),
    *("unsupported_method", "allow_header_conformance"),
)
EXAMPLES = 300
"""Maximum number of requests for each endpoint in a round."""


def statuses(url: str) -> Counter[int]:
    """Return the number of responses of each status, as the server has counted them."""
    text = urlopen(f"{url}/metrics").read().decode()
    found: Counter[int] = Counter()
    for status, count in re.findall(r'^agi2_requests_total{.*status="(\d+)"} (\S+)$', text, re.M):
        found[int(status)] += int(float(count))
    return found


def run_round(command: str, url: str, seed: int, seconds: float) -> str:
    """Run schemathesis once; return its report if a check has failed."""
    arguments = [command, "run", f"{url}/openapi.json", "--seed", str(seed), "--no-color"]
    arguments += ["--phases", "coverage,fuzzing", "--checks", ",".join(CHECKS), "--warnings", "off"]
    arguments += ["--max-examples", str(EXAMPLES), "--no-shrink", "--continue-on-failure"]
    hooks = {"SCHEMATHESIS_HOOKS": "fuzz_api_hooks", "PYTHONPATH": str(Path(__file__).parent)}
    with tempfile.TemporaryDirectory() as folder:  # its cache of examples
        process = subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env={**os.environ, **hooks},
        )
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return ""
    return output if process.returncode else ""


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--requests", type=int, default=10_000)
    options.add_argument("--seconds", type=float, default=3000, help="limit of the whole time")
    options.add_argument("--command", default="st", help="schemathesis' command")
    given = options.parse_args()
    command = shutil.which(given.command)
    if command is None:
        raise SystemExit(f"{given.command} is missing: uv tool install schemathesis, or --command")
    start, failures, found = time.monotonic(), list[str](), Counter[int]()
    with tempfile.TemporaryDirectory() as folder:
        prepare_tiny(Path(folder))
        limits = ("--max-rows", "8", "--max-tokens", "64")
        with ServerProcess(agi2_command(Path(folder) / "gpt2", *limits)) as server:
            url = "http://{}:{}".format(*server.address)
            seed = 0
            while found.total() < given.requests:
                rest = given.seconds - (time.monotonic() - start)
                if rest < 1:
                    failures.append(f"only {found.total()} requests in {given.seconds:g} s")
                    break
                if failed := run_round(command, url, seed, rest):
                    failures.append(failed)
                found, seed = statuses(url), seed + 1
                print(f"round {seed}: {found.total()} requests", file=sys.stderr)
            if "Traceback" in server.output:
                failures.append(server.output)
    errors = sum(count for status, count in found.items() if status >= 500)
    rows = [{"status": status, "responses": count} for status, count in sorted(found.items())]
    report([*rows, {"status": "5xx", "responses": errors}], given.json)
    if errors or failures:
        raise SystemExit("\n".join([f"{errors} errors of the server", *failures]))


if __name__ == "__main__":
    main()
