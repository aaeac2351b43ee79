"""Ids in paths: whatever an event may carry as an id can be asked for and forgotten by it."""

from typing import Annotated, Final

from fastapi import Path
from starlette.convertors import Convertor, register_url_convertor

from serving.schemas import Id

USER: Final = "/{user_id:any_id}"
ITEM: Final = "/{item_id:any_id}"
UserId = Annotated[Id, Path(examples=["14911", "a/b"])]
ItemId = Annotated[Id, Path(examples=["85123A"])]


class _AnyId(Convertor[str]):
    """All of the path there, decoded: slashes and line breaks too. A fixed part that follows is the last one.

    Starlette's own `path` ends before a line break at the end, and so would name another user.
    """

    regex = "(?s:.+)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("any_id", _AnyId())
