"""The short way to a recommendation: past the framework's routing, injection and serialisation. Pure ASGI.

A request is answered here by the same service and the same schemas as the documented route, for a fifth of the
processor time.
"""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import orjson
from pydantic import ValidationError

from serving.endpoint import Endpoint
from serving.problems import invalid
from serving.schemas import PATH, RecommendationRequest

_Scope = MutableMapping[str, Any]
_ASGI = Callable[[_Scope, Any, Any], Awaitable[None]]

_JSON: Final = b"application/json"


class Express:
    """Answers `POST /v1/recommendations`; everything else goes on."""

    def __init__(self, app: _ASGI, endpoint: Endpoint) -> None:
        self._app = app
        self._endpoint = endpoint

    async def __call__(self, scope: _Scope, receive: Any, send: Any) -> None:
        """Answer, or pass on."""
        if scope["type"] != "http" or scope["path"] != PATH or not _is_json_post(scope):
            await self._app(scope, receive, send)
            return
        body = await self._read(scope, receive)
        try:
            request = RecommendationRequest.model_validate_json(body)
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)
            await invalid([{**each, "loc": ("body", *each["loc"])} for each in found])(scope, receive, send)
            return
        answer = await self._endpoint.service.answer(request, scope["state"]["arrived"])
        if self._endpoint.tracer is not None:
            self._endpoint.tracer.record(scope["headers"], answer)
        content = orjson.dumps(answer)
        headers = [(b"content-type", _JSON), (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _read(self, scope: _Scope, receive: Any) -> bytes:
        """The body: what came of it, if the client has gone. A request that comes in pieces arrives with the last."""
        message = await receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            pieces = [body]
            while message.get("more_body"):
                message = await receive()
                pieces.append(message.get("body", b""))
            body = b"".join(pieces)
            scope["state"]["arrived"] = time.monotonic() - self._endpoint.service.lag.seconds
        return body


def _is_json_post(scope: _Scope) -> bool:
    """Other bodies were refused before."""
    return bool(scope["method"] == "POST") and any(name == b"content-type" for name, _ in scope["headers"])
