"""Random clients of `agi2 serve`: some leave, read slowly, send too much or nonsense, or burst.

Run by `serve.py --soak SECONDS`. Nothing may leak, no answer may differ from that of the same
request alone, and no request may be stuck. Then the server is killed and started again.
"""

import asyncio
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


class Soak:
    """Sends random requests and counts what comes back; what must not be is in `problems`."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
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
                self.problems.append(f"another answer after the load to {body}")

    async def run(self, seconds: float) -> None:
        """Send random requests for some seconds, several at a time."""
        end = time.monotonic() + seconds
        kinds = [self._compare, self._leave, self._read_slowly, self._refused, self._burst]

        async def worker() -> None:
            while time.monotonic() < end:
                (kind,) = self._random.choices(kinds, [10, 5, 2, 4, 1])
                try:
                    await kind()
                except TimeoutError:
                    self.problems.append(f"{kind.__name__}: stuck")
                except (OSError, EOFError) as error:
                    self.problems.append(f"{kind.__name__}: {error!r}")

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
            self.problems.append(f"{kind}: {answer.status} {answer.body[:200]!r}")
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
            self.problems.append(f"{kind}: {answer.status}, not {status}")
        self.counts["refused"] += 1

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
        self.problems.append(f"rows are not freed:\n{answer.body.decode()}")

    async def kill(self) -> None:
        """Kill the server while clients read: each must see that the response is not complete."""
        body = {**self._checked[0], **ENDLESS}
        clients = [asyncio.create_task(self._send(body)) for _ in range(ROWS)]
        await asyncio.sleep(0.3)
        self.server.kill()
        for found in await asyncio.gather(*clients, return_exceptions=True):
            if not isinstance(found, (EOFError, OSError)) or isinstance(found, TimeoutError):
                self.problems.append(f"a client of a killed server: {found!r}")
        try:
            await self._send(body)
        except ConnectionRefusedError:
            return
        self.problems.append("a killed server still answers")


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
        before = server.memory()["now"], server.sockets()
        asyncio.run(test.run(0.8 * seconds))
        asyncio.run(test.wait_until_idle())
        asyncio.run(test.check_alone())
        after = server.memory()["now"], server.sockets()
        port = str(server.address[1])
        asyncio.run(test.kill())
        output = server.output
    again = agi2_command(model, *LIMITS)
    again[again.index("--port") + 1] = port
    with ServerProcess(again) as server:
        test.server = server
        asyncio.run(test.check_alone())
    if "Traceback" in output:
        test.problems.append(output)
    if after[1] > before[1] or after[0] > 1.1 * before[0]:
        test.problems.append(f"memory in GB and sockets grew from {before} to {after}")
    if test.problems:
        raise SystemExit("\n".join([f"{len(test.problems)} problems", *test.problems[:20]]))
    rows: list[dict[str, object]] = [
        {"soak": kind, "requests": count} for kind, count in sorted(test.counts.items())
    ]
    figures = {"GB": (before[0], after[0]), "sockets": (before[1], after[1])}
    return rows + [
        {"soak": f"{what} after a fifth, at the end", "requests": f"{a:.4g}, {b:.4g}"}
        for what, (a, b) in figures.items()
    ]
