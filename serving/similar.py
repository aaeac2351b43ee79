"""Items most like one item, inside the deadline."""

import logging

from recsys.contracts.ids import Floats, Tokens
from serving import fallback
from serving.answers import AnswerService
from serving.deadline import DeadlineError, OverloadError
from serving.fallback import Allowed, Listed
from serving.handy import items_of
from serving.live import LiveRelease
from serving.schemas import Degraded, SimilarItems

logger = logging.getLogger(__name__)


async def similar(service: AnswerService, live: LiveRelease, token: int, k: int, arrived: float) -> SimilarItems:
    """Up to k items that may be shown; popular ones of the category, labelled, where the index takes too long."""
    rules = live.rules
    found: tuple[Tokens, Floats] | None = None
    degraded: Degraded | None = None
    try:
        found = await service.pool.run(lambda: live.neighbours.shown(token, k, rules.shown), service.left_s(arrived))
    except OverloadError:
        degraded = "overload"
    except DeadlineError:
        degraded = "deadline"
    except Exception:
        degraded = "engine_error"
        logger.exception("index failed")
    if found is not None:
        listed = Listed("nearest", *found)
    else:
        allowed = Allowed(rules.shown, frozenset({token}))
        listed = fallback.best_at_hand(live, k, allowed, rules, last_answer=None, nearest=None, last_token=token)
    return SimilarItems(items=items_of(live, listed, []), release=live.name, source=listed.source, degraded=degraded)
