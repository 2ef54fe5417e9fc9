"""The settings of a server, validated once."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from ..arguments import PositiveInt, Range, convert_fields
from ..errors import AGI2Error

MIN_KEY_LENGTH = 16
"""Characters of an API key: a shorter one can be guessed by trying."""
_PositiveSeconds = Annotated[float, Range(0.001, maximum=86_400)]


@dataclass(frozen=True)
class ServeSettings:
    """Address, key and limits of a server.

    Raises:
        AGI2Error: if one is out of range, or an address other than the machine's own has no key.
    """

    host: str = "127.0.0.1"
    """Address to bind to."""
    port: Annotated[int, Range(0, maximum=65_535)] = 8000
    """Port to bind to; 0 for a free one."""
    api_key: str | None = None
    """Key that requests must carry; needed unless `host` is a loopback address."""
    allowed_hosts: Sequence[str] = ()
    """Names by which clients reach this server, in addition to addresses and localhost."""
    max_rows: PositiveInt | None = None
    """Maximum number of texts of a model generated at once; None for what memory allows."""
    max_waiting: PositiveInt = 256
    """Maximum number of texts of a model that wait for a row; more are refused with 429."""
    max_tokens: PositiveInt = 4096
    """Maximum number of new tokens of a text that a request may ask for."""
    deadline: _PositiveSeconds = 600.0
    """Seconds after which a request is ended."""
    max_body: PositiveInt = 4 * 2**20
    """Maximum size of a request's body in bytes."""
    body_seconds: _PositiveSeconds = 30.0
    """Seconds in which a request's body must arrive."""
    client_seconds: _PositiveSeconds = 30.0
    """Seconds in which the head of a request must arrive, and a client must read a response."""
    max_connections: PositiveInt = 512
    """Maximum number of open connections; more are refused with 503."""
    keep_alive: _PositiveSeconds = 15.0
    """Seconds without an event after which a stream sends a comment, so that no proxy closes it."""
    shutdown_seconds: _PositiveSeconds = 30.0
    """Seconds that running requests have to finish at a shutdown."""
    prefix_cache_bytes: Annotated[int, Range(0)] = 256 * 2**20
    """Maximum memory of the cached prompt prefixes of a model; 0 for none."""
    model_memory: PositiveInt | None = None
    """Maximum memory of the weights of loaded models in bytes; None for half of what is free."""

    def __post_init__(self) -> None:
        convert_fields(self)
        for name in self.allowed_hosts:
            if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
                raise AGI2Error(f"{name!r} is not a host name: name it without scheme and port")
        if self.api_key is not None:
            _check_key(self.api_key)
        elif not self.is_loopback:
            raise AGI2Error(
                f"host {self.host} can be reached from other machines: set a key with --api-key or "
                "AGI2_API_KEY, or bind to 127.0.0.1"
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def _check_key(key: str) -> None:
    """Check that a key is long enough, and can be sent in a header."""
    if len(key) < MIN_KEY_LENGTH:
        raise AGI2Error(f"the API key must have at least {MIN_KEY_LENGTH} characters")
    if not re.fullmatch(r"[!-~]+", key):
        raise AGI2Error("the API key must be made of printable ASCII characters without spaces")
