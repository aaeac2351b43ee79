"""From a folder of shop event logs to a measured recommendation endpoint that answers inside 100 ms."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys.runtime.recommender import Recommender, ScoredItem, Users

__all__ = ["Recommender", "ScoredItem", "Users"]


def __getattr__(name: str) -> Any:
    """Load the engine's libraries only when a recommender is asked for."""
    if name in __all__:
        from recsys.runtime import recommender

        return getattr(recommender, name)
    raise AttributeError(f"module 'recsys' has no attribute {name!r}")
