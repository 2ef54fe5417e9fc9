"""Random clients of `agi2 serve`: some leave, read slowly, send too much, half or nonsense, burst.

Run by `serve.py --soak SECONDS`. Nothing may leak, no answer may differ from that of the same
request alone, and no request may be stuck. Then the server is killed and started again.
"""

import asyncio
import json
import random
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

from serving import Answer, ServerProcess, agi2_command, send

ROWS, WAITING, WORKERS, BURST, CHECKED, STUCK = 4, 8, 8, 24, 12, 60.0
"""Rows and queue of the server; clients; requests at once; requests whose answers are compared;
seconds after which a request counts as stuck."""
LIMITS = ("--max-rows", str(ROWS), "--max-waiting", str(WAITING), "--prefix-cache", "16")
NEW = 24
ENDLESS = {"stream": True, "max_tokens": 4000, "ignore_eos": True}
REFUSED = {
    "broken JSON": (b'{"model": "gpt2", "prompt": ', "/v1/completions", 400),
    "an unknown key": ({"model": "gpt2", "prompt": "a", "nonsense": 1}, "/v1/completions", 400),
    "a wrong type": ({"model": "gpt2", "prompt": "a", "top_p": "b"}, "/v1/completions", 400),
    "a long prompt": ({"model": "gpt2", "prompt": [5] * 5000}, "/v1/completions", 400),
    "another model": ({"model": "gpt3", "prompt": "a"}, "/v1/completions", 404),
    "another path": ({}, "/v1/nothing", 404),
    "a large body": (b" " * (5 * 2**20), "/v1/completions", 413),
}
"""What is refused: the body, the path and the status."""
PROBLEMS = (
    "wrong answers",
    "stuck requests",
    "rows not freed",
    "leaks",
    "wrong refusals",
    "broken connections",
    "errors in the log",
)
"""Kinds of what must not be."""


class Soak:
    """Sends random requests and counts what comes back; what must not be is in `problems`."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.counts: Counter[str] = Counter()
        self.problems: list[tuple[str, str]] = []
        """Each a kind of `PROBLEMS` and a line."""
        self._random = random.Random(0)
        self._checked = [self._request(seed) for seed in range(CHECKED)]
        self._alone: list[str] = []

    def _request(self, seed: int) -> dict[str, Any]:
        """Return a request that always has the same answer; some begin alike."""
        draw = random.Random(seed)
        prompt = [draw.randrange(200) for _ in range(draw.choice([3, 40, 90]))]
        start = [7] * 40 if seed % 3 == 0 else []
        return {
            "model": "gpt2",
            "prompt": (start + prompt)[:100],
            "max_tokens": draw.randrange(1, NEW),
            "temperature": 0.9,
            "top_p": draw.choice([0.9, 1.0]),
            "seed": seed,
        }

    async def _send(self, body: Any, path: str = "/v1/completions", **options: Any) -> Answer:
        return await asyncio.wait_for(send(self.server.address, body, path, **options), STUCK)

    async def compute_alone(self) -> None:
        """Send each request that is compared alone."""
        self._alone = [await self._text(body) for body in self._checked]

    async def _text(self, body: dict[str, Any]) -> str:
        answer = await self._send(body)
        if answer.status != 200:
            raise SystemExit(f"status {answer.status}: {answer.body[:300]!r}")
        return answer.text

    async def check_alone(self) -> None:
        """Check that each request that is compared has the same answer alone again."""
        for body, alone in zip(self._checked, self._alone, strict=True):
            if await self._text(body) != alone:
                self.problems.append(("wrong answers", f"after the load, to {body}"))

    async def run(self, seconds: float) -> None:
        """Send random requests for some seconds, several at a time."""
        end = time.monotonic() + seconds
        kinds = {
            self._compare: 10,
            self._leave: 5,
            self._refused: 4,
            self._send_half: 3,
            self._read_slowly: 2,
            self._burst: 1,
        }

        async def worker() -> None:
            while time.monotonic() < end:
                (kind,) = self._random.choices(list(kinds), list(kinds.values()))
                try:
                    await kind()
                except TimeoutError:
                    self.problems.append(("stuck requests", kind.__name__))
                except (OSError, EOFError) as error:
                    self.problems.append(("broken connections", f"{kind.__name__}: {error!r}"))

        await asyncio.gather(*(worker() for _ in range(WORKERS)))

    async def _compare(self) -> None:
        index = self._random.randrange(CHECKED)
        self._verify("compared", index, await self._send(self._sometimes_streamed(index)))

    def _sometimes_streamed(self, index: int) -> dict[str, Any]:
        return {**self._checked[index], "stream": self._random.random() < 0.5}

    def _verify(self, kind: str, index: int, answer: Answer) -> None:
        """Compare an answer with that of the request alone; a full queue is one, too."""
        if answer.status == 429 and int(answer.headers.get("retry-after", "0")) > 0:
            self.counts["429 with Retry-After"] += 1
        elif answer.status != 200 or answer.text != self._alone[index]:
            line = f"{kind}: {answer.status} {answer.body[:200]!r}"
            self.problems.append(("wrong answers", line))
        else:
            self.counts[f"{kind}: equal"] += 1

    async def _leave(self) -> None:
        body = {**self._checked[0], **ENDLESS}
        await self._send(body, leave_after=self._random.randrange(1, 6))
        self.counts["left in the middle"] += 1

    async def _read_slowly(self) -> None:
        index = self._random.randrange(CHECKED)
        body = {**self._checked[index], "stream": True}
        self._verify("read slowly", index, await self._send(body, pause=0.1))

    async def _refused(self) -> None:
        kind = self._random.choice(list(REFUSED))
        body, path, status = REFUSED[kind]
        answer = await self._send(body, path)
        if answer.status != status or "message" not in answer.json["error"]:
            self.problems.append(("wrong refusals", f"{kind}: {answer.status}, not {status}"))
        self.counts["refused"] += 1

    async def _send_half(self) -> None:
        """Send a part of a request, and leave."""
        data = json.dumps(self._checked[0]).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {self.server.address[0]}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        whole = head.encode() + data
        _, writer = await asyncio.open_connection(*self.server.address)
        writer.write(whole[: self._random.randrange(len(whole))])
        await writer.drain()
        await asyncio.sleep(self._random.choice([0.0, 0.5]))
        writer.close()
        await writer.wait_closed()
        self.counts["sent half"] += 1

    async def _burst(self) -> None:
        indexes = [self._random.randrange(CHECKED) for _ in range(BURST)]
        sent = [self._send(self._sometimes_streamed(index)) for index in indexes]
        for index, answer in zip(indexes, await asyncio.gather(*sent), strict=True):
            self._verify("burst", index, answer)

    async def wait_until_idle(self) -> None:
        """Wait until no sequence runs or waits."""
        for _ in range(100):
            answer = await self._send(b"", "/metrics", method="GET")
            found = re.findall(rb"^agi2_(?:running|waiting)\w*{.*} ([0-9.]+)$", answer.body, re.M)
            if found and not any(map(float, found)):
                return
            await asyncio.sleep(0.1)
        self.problems.append(("rows not freed", answer.body.decode()))

    async def kill(self) -> None:
        """Kill the server while clients read: each must see that the response is not complete."""
        body = {**self._checked[0], **ENDLESS}
        clients = [asyncio.create_task(self._send(body)) for _ in range(ROWS)]
        await asyncio.sleep(0.3)
        self.server.kill()
        for found in await asyncio.gather(*clients, return_exceptions=True):
            if not isinstance(found, (EOFError, OSError)) or isinstance(found, TimeoutError):
                self.problems.append(("wrong answers", f"of a killed server: {found!r}"))
        try:
            await self._send(body)
        except ConnectionRefusedError:
            return
        self.problems.append(("wrong answers", "a killed server still answers"))


def figures(server: ServerProcess) -> dict[str, float]:
    """Return what must not grow."""
    return {
        "GB": server.memory()["now"],
        "sockets": server.sockets(),
        "threads": server.threads(),
    }


def soak(model: Path, seconds: float) -> list[dict[str, object]]:
    """Send random requests to a server of a model; return rows of figures.

    Raises:
        SystemExit: if anything was not as it must be.
    """
    with ServerProcess(agi2_command(model, *LIMITS)) as server:
        test = Soak(server)
        asyncio.run(test.compute_alone())
        asyncio.run(test.run(0.2 * seconds))  # until its buffers and caches are full
        asyncio.run(test.wait_until_idle())
        before = figures(server)
        asyncio.run(test.run(0.8 * seconds))
        asyncio.run(test.wait_until_idle())
        asyncio.run(test.check_alone())
        after = figures(server)
        port = str(server.address[1])
        asyncio.run(test.kill())
        output = server.output
    again = agi2_command(model, *LIMITS)
    again[again.index("--port") + 1] = port
    with ServerProcess(again) as server:
        test.server = server
        asyncio.run(test.check_alone())
    if "Traceback" in output:
        test.problems.append(("errors in the log", output))
    # What was allocated for the largest burst stays.
    limits = {"GB": 1.1 * before["GB"], "sockets": before["sockets"], "threads": before["threads"]}
    for what, limit in limits.items():
        if after[what] > limit:
            test.problems.append(("leaks", f"{what}: {before[what]:.4g} to {after[what]:.4g}"))
    counts = Counter(kind for kind, _ in test.problems)
    rows: list[dict[str, object]] = [
        *({"soak": kind, "requests": count} for kind, count in sorted(test.counts.items())),
        *({"soak": kind, "requests": counts[kind]} for kind in PROBLEMS),
    ]
    for what, value in before.items():
        found = f"{value:.4g}, {after[what]:.4g}"
        rows.append({"soak": f"{what} after a fifth, at the end", "requests": found})
    if test.problems:
        lines = (f"{kind}: {line}" for kind, line in test.problems[:20])
        raise SystemExit("\n".join([*map(str, rows), *lines]))
    return rows
