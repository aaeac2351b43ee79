"""The outermost layer: when a request arrived, and how large it may be. Pure ASGI."""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from starlette.exceptions import HTTPException

from serving.lag import LoopLag
from serving.problems import refusal

_Scope = MutableMapping[str, Any]
_ASGI = Callable[[_Scope, Any, Any], Awaitable[None]]

MAX_BODY_BYTES: Final = 8_000_000
"""A full batch of events with the longest ids, in any script, written as UTF-8, is smaller."""


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
        try:
            if int(declared) > MAX_BODY_BYTES:  # the server has checked that it is a number
                raise _too_large()
            await self._app(scope, _counted(receive), send)
        except HTTPException as error:  # what is raised above the framework's own handlers
            await refusal(error)(scope, receive, send)


def _counted(receive: Any) -> Callable[[], Awaitable[Any]]:
    """`receive` that raises once too much has come, for bodies that do not declare their length."""
    received = 0

    async def counting() -> Any:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise _too_large()
        return message

    return counting


def _too_large() -> HTTPException:
    """The rest of the body is not read: the connection is of no more use."""
    return HTTPException(413, f"more than {MAX_BODY_BYTES:,} bytes", {"connection": "close"})
