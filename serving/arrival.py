"""The outermost layer: when a request arrived, and how large it may be. Pure ASGI."""

import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from starlette.exceptions import HTTPException

from serving.lag import LoopLag

_Scope = MutableMapping[str, Any]
_ASGI = Callable[[_Scope, Any, Any], Awaitable[None]]

MAX_BODY_BYTES: Final = 8_000_000
"""A full batch of events with the longest ids, in any script, written as UTF-8, is smaller."""


_TOO_LARGE: Final = f"more than {MAX_BODY_BYTES:,} bytes"


class Arrival:
    """Notes when the request can have come at the earliest; refuses a body that is too large before reading it."""

    def __init__(self, app: _ASGI, lag: LoopLag) -> None:
        self._app = app
        self._lag = lag

    async def __call__(self, scope: _Scope, receive: Any, send: Any) -> None:
        """Pass on, with the moment in the request's state."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})["arrived"] = time.monotonic() - self._lag.seconds
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if int(declared) > MAX_BODY_BYTES:  # the server has checked that it is a number
            await _refuse(send)
            return
        await self._app(scope, _counted(receive), send)


def _counted(receive: Any) -> Callable[[], Awaitable[Any]]:
    """`receive` that raises once too much has come, for bodies that do not declare their length."""
    received = 0

    async def counting() -> Any:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise HTTPException(413, _TOO_LARGE)
        return message

    return counting


async def _refuse(send: Any) -> None:
    body = json.dumps({"detail": [{"loc": ["body"], "msg": _TOO_LARGE}]}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 413, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
