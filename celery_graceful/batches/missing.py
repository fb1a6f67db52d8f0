"""Missing members: pending, and nowhere to be found.

A batch that stands still is looked at. Its members that have not ended are looked for wherever a
message can be; who is not found is looked for again a moment later, everywhere. What moves in
between is seen then, or has ended. What is found neither time is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from celery_graceful.batches.brief_status import Standing, standing_of, still_open
from celery_graceful.batches.findings import LostBatch, Missing
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.search_state import Doubt, Sought, callback_member
from celery_graceful.batches.whereabouts import Whereabouts

__all__ = ["MOST", "Scan"]

#: Members that are looked for at once, unless a batch alone has more; it bounds the memory.
MOST = 200_000

#: Members of one batch that are listed: the others are when these are repaired.
LISTED = 10_000

NOWHERE = "in no queue, and no worker holds it"


class Scan:
    """Looks for members of some batches.

    Args:
        ledger: Where the batches are known.
        whereabouts: Where messages can be.
        wait: Waits for so many seconds; whether to go on then.
        pause: Seconds between the two looks: living workers have said again what they hold.
        on_doubt: Told of a batch, and of those which may be missing or not, so are not listed.
    """

    def __init__(
        self,
        ledger: BatchLedger,
        whereabouts: Whereabouts,
        wait: Callable[[float], bool],
        pause: float,
        on_doubt: Callable[[str, Collection[str], Doubt], None] = lambda *_: None,
    ) -> None:
        self.ledger = ledger
        self.whereabouts = whereabouts
        self._wait = wait
        self.pause = pause
        self._on_doubt = on_doubt

    def look(self, batches: Sequence[str]) -> dict[str, list[Missing]]:
        """What is missing of some batches that have not ended.

        Returns:
            Of each that could be looked at; nothing, if it was stopped meanwhile.

        Raises:
            StoreAway: The store, or the broker's Redis, did not answer.
            Exception: What the broker's client raised.
        """
        standing = {b: now for b in batches if (now := standing_of(self.ledger, b)) is not None}
        found: dict[str, list[Missing]] = {batch: [] for batch in standing}
        sought = Sought(
            {batch: self._open(batch, now, found[batch]) for batch, now in standing.items()}
        )
        self.whereabouts.look(sought, again=False)
        left = self._believed(sought, standing)
        if not left:
            return found
        if not self._wait(self.pause):
            return {}
        sought = Sought({b: still_open(self.ledger, b, list(some)) for b, some in left.items()})
        self.whereabouts.look(sought, again=True)
        for batch, some in self._believed(sought, standing).items():
            doubt = sought.doubts.get(batch)
            why = NOWHERE if doubt is None else doubt.why
            members = still_open(self.ledger, batch, sorted(some)[:LISTED])
            found[batch] += [Missing(member, why, doubt is None) for member in members]
        return found

    def _open(self, batch: str, now: Standing, missing: list[Missing]) -> Iterator[str]:
        """Members and callbacks that have not ended, and are messages."""
        kids = set(self.ledger.kids(batch))
        for kid in kids:
            if self.ledger.state(kid) is None:
                missing.append(LostBatch(kid))
        yield from (m for m in self.ledger.members_pending(batch) if m not in kids)
        yield from map(callback_member, now.callbacks)

    def _believed(self, sought: Sought, standing: dict[str, Standing]) -> dict[str, set[str]]:
        """Who was not found, and may be missing for all that is known."""
        if not sought.doubts:
            return dict(sought)
        seconds, believed = self.ledger.now(), {}
        for batch, members in sought:
            doubt = sought.doubts.get(batch)
            if doubt is None or seconds - standing[batch].moved >= doubt.age:
                believed[batch] = members
            else:
                self._on_doubt(batch, members, doubt)
        return believed
