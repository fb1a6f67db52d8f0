"""What a worker has counted and nobody has seen when it ends: others count it in.

Most of what is worth a number happens in the last seconds of a worker, and who collects them comes
by every quarter of a minute. So what was counted since then is left in the store, and goes to
whoever is next collected from.

``graceful:metrics:<app>``
    List: JSON of numbers; the newest 1000, for an hour.
"""

from __future__ import annotations

from collections.abc import Mapping

from celery_graceful.metrics.counts import Key, Numbers, added, from_json, to_json
from celery_graceful.store.store import Store

__all__ = ["leave", "take"]

#: Ends of workers that are remembered, for so many milliseconds; and that are taken at once.
MOST, TTL, AT_ONCE = 1000, 3_600_000, 100


def _key(app: str) -> str:
    return f"graceful:metrics:{app}"


def leave(store: Store, app: str, numbers: Mapping[Key, float], timeout: float) -> None:
    """Leave them to others.

    Raises:
        StoreAway: It may be done or not.
    """
    key = [_key(app)]
    for command, *args in (("RPUSH", to_json(numbers)), ("LTRIM", -MOST, -1), ("PEXPIRE", TTL)):
        store.execute(str(command), key, args, timeout=timeout, insist=True, quiet=True)


def take(store: Store, app: str) -> Numbers:
    """What others have left; it is ours now.

    Raises:
        StoreAway: The store does not answer. Some of it may be gone.
    """
    found: Numbers = {}
    for text in store.execute("LPOP", [_key(app)], [AT_ONCE], quiet=True) or ():
        found = added(found, from_json(text))
    return found
