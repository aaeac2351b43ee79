"""The one-off answer: a user of the features, or a history from a file."""

from collections.abc import Callable
from pathlib import Path

from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.ids import Item, Tokens
from recsys.runtime.recommender import Recommender, ScoredItem, Users


def run(
    release: Path,
    *,
    user_id: str | None,
    features: Path | None,
    history: Path | None,
    k: int,
    exclude_seen: bool,
    keep: Callable[[Item], bool] | None = None,
) -> list[ScoredItem]:
    """The k best items for one history: that of a user of the features, or that in a file.

    A user without an item that the release knows gets popular items. `keep` says of an item whether it may be shown.

    Raises:
        ConfigError: `keep` leaves no item.
        UnknownUserError: the features have no such user.
        UnknownItemError: no item of the file is in the release.
    """
    items = None if history is None else _read_history(history)
    if items is None and features is None:
        raise ConfigError("--user needs --features DIR: that is where the history is")
    recommender = Recommender.load(release)
    check_some_left(recommender, recommender.hidden((), keep))
    if items is not None:
        return recommender.recommend(items, k, exclude_seen=exclude_seen, keep=keep)
    assert user_id is not None
    assert features is not None
    return recommender.recommend(Users(features, [user_id]), k, exclude_seen=exclude_seen, keep=keep)[user_id]


def check_some_left(recommender: Recommender, hidden: Tokens) -> None:
    """Refuse filters that hide every item of the release.

    Raises:
        ConfigError: they do.
    """
    num_items = len(recommender.release.vocabulary)
    if len(hidden) == num_items:
        raise ConfigError(
            f"none of the {num_items:,} items of release {recommender.release.name} passes the filters; "
            "ask for other categories or a wider range of prices"
        )


def _read_history(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected one item_id a line, oldest first") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; expected one item_id a line, oldest first") from None
