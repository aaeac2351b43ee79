"""The short way to a recommendation: past the framework's routing, injection and serialisation. Pure ASGI.

A well-formed request is answered here by the same service and the same schemas as the documented route, for a
fifth of the processor time. Whatever is not well-formed is passed on, body and all, so that every refusal is
the framework's.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import orjson
from pydantic import ValidationError

from serving.endpoint import Endpoint
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
        messages, body = await _read(receive)
        try:
            request = RecommendationRequest.model_validate_json(body)
        except ValidationError:
            await self._app(scope, _again(messages, receive), send)
            return
        answer = await self._endpoint.service.answer(request, scope["state"]["arrived"])
        content = orjson.dumps(answer)
        headers = [(b"content-type", _JSON), (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


def _is_json_post(scope: _Scope) -> bool:
    if scope["method"] != "POST":
        return False
    content_type = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    return bool(content_type.partition(b";")[0].strip().lower() == _JSON)


async def _read(receive: Any) -> tuple[list[Any], bytes]:
    """All messages of the request, and its body: what came of it, if the client has gone."""
    messages = [await receive()]
    while messages[-1].get("more_body"):
        messages.append(await receive())
    return messages, b"".join(message.get("body", b"") for message in messages)


def _again(messages: list[Any], receive: Any) -> Callable[[], Awaitable[Any]]:
    """`receive` that begins with messages which were received already."""
    waiting = iter(messages)

    async def receiving() -> Any:
        for message in waiting:
            return message
        return await receive()

    return receiving
