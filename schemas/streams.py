"""The JetStream streams: what each keeps and for how long. Whoever starts first creates them.

The configurations are JetStream's own (`nats stream info`): times in ns, sizes in bytes. All discard the old:
a stream that refused new messages would stop every collector once it is full. An existing stream is left as it
is, so an operator may give it replicas, sources or other limits.
"""

import json
from typing import Any, Protocol

from schemas import subjects

SECOND = 1_000_000_000
DAY = 86_400 * SECOND
MIN_BYTES = 4 << 20
"""The least worth having: a stream is made smaller, down to this, where the server has no room for more."""

_COMMON: dict[str, Any] = {"retention": "limits", "storage": "file", "discard": "old", "num_replicas": 1}

STREAMS: dict[str, dict[str, Any]] = {
    subjects.VERDICTS_STREAM: _COMMON | {
        "name": subjects.VERDICTS_STREAM,
        "subjects": [subjects.ALL_VERDICTS],
        "max_bytes": 4 << 30,
        "max_age": 2 * DAY,
        "duplicate_window": 120 * SECOND,
        "description": "batches of verdicts, columnar msgpack (schemas/envelope.py)",
    },
    subjects.RECORDS_STREAM: _COMMON | {
        "name": subjects.RECORDS_STREAM,
        "subjects": [subjects.ALL_POLICY, subjects.ALL_LOSS],
        "max_bytes": 1 << 30,
        "max_age": 30 * DAY,
        "duplicate_window": 120 * SECOND,
        "compression": "s2",
        "description": "policy and loss records (schemas/messages.py)",
    },
    subjects.DEAD_STREAM: _COMMON | {
        "name": subjects.DEAD_STREAM,
        "subjects": [subjects.ALL_DEAD],
        "max_bytes": 256 << 20,
        "max_age": 30 * DAY,
        "description": "messages a sink could not decode",
    },
}  # fmt: skip

_NOT_FOUND, _NAME_IN_USE, _NO_STORAGE = 10059, 10058, 10047  # error codes of the JetStream API


class StreamSetupError(Exception):
    """The server refuses a stream; the text is its reason."""


class _Client(Protocol):
    """A nats-py client, or anything with its `request`."""

    async def request(self, subject: str, payload: bytes, timeout: float) -> Any: ...  # noqa: ASYNC109 (nats-py's)


async def _api(client: _Client, what: str, body: dict[str, Any]) -> dict[str, Any]:
    reply = await client.request(f"$JS.API.{what}", json.dumps(body).encode() if body else b"", timeout=5)
    answer: dict[str, Any] = json.loads(reply.data)
    return answer


async def ensure(client: _Client, name: str, **overrides: Any) -> str:
    """Make the stream `name` if it is missing; `overrides` are keys of its configuration.

    Of an existing stream only keys in `overrides` are changed. Returns `created`, `updated` or `present`.
    Raises StreamSetupError, or what the client raises when the server is away or has no JetStream.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    info = await _api(client, f"STREAM.INFO.{name}", {})
    error = info.get("error")
    if error is None:
        config = info["config"]
        if all(config.get(key) == value for key, value in given.items()):
            return "present"
        answer = await _api(client, f"STREAM.UPDATE.{name}", config | given)
        if "error" in answer:
            raise StreamSetupError(f"stream {name}: {answer['error'].get('description', answer['error'])}")
        return "updated"
    if error.get("err_code") != _NOT_FOUND:
        raise StreamSetupError(f"stream {name}: {error.get('description', error)}")
    config = STREAMS[name] | given
    while True:
        answer = await _api(client, f"STREAM.CREATE.{name}", config)
        error = answer.get("error")
        if error is None:
            return "created"
        if error.get("err_code") == _NAME_IN_USE:  # somebody was faster, with other limits
            return "present"
        if error.get("err_code") != _NO_STORAGE or config["max_bytes"] <= MIN_BYTES:
            raise StreamSetupError(f"stream {name}: {error.get('description', error)}")
        config = config | {"max_bytes": max(MIN_BYTES, config["max_bytes"] // 2)}
