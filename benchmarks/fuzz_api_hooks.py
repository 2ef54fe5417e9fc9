"""What `fuzz_api.py` changes of the requests that schemathesis makes, so that more of them run."""

from typing import Any

import schemathesis

LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Name the served model in most bodies, and limit `max_tokens`."""
    if isinstance(body, dict) and isinstance(body.get("model"), str) and len(body["model"]) % 8:
        body["model"] = "gpt2"
        for key in LENGTHS:
            if type(body.get(key)) is int and body[key] > 64:
                body[key] = body[key] % 64 + 1
    return body
