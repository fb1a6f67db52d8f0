"""Members that have failed, and go on all the same: those are not to be sent again.

One that was sent again has failed until it succeeds. So has one that was in a queue, or with a
worker, when its batch was completed by force; and one that was sent again out of quarantine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from celery_graceful.batches.findings import Missing, Named
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.search_state import Sought
from celery_graceful.batches.whereabouts import Whereabouts
from celery_graceful.store.store import StoreForbidden

__all__ = ["FailedMembers"]

#: Why one need not be sent again.
GOES_ON = "it is in a queue, or a worker holds it"


class FailedMembers:
    """Those of some batches.

    Args:
        ledger: Where the batches are known.
        whereabouts: Where messages can be.
        wait: Waits for so many seconds.
        pause: Seconds between two looks, as for ``Scan``.
        lately: Seconds for which one that was sent again is left alone, so not looked for.
    """

    def __init__(
        self,
        ledger: BatchLedger,
        whereabouts: Whereabouts,
        wait: Callable[[float], object],
        pause: float,
        lately: float,
    ) -> None:
        self.ledger = ledger
        self._where, self._wait = whereabouts, wait
        self._pause, self._lately = pause, lately
        #: When the last look began, seconds of the server's clock.
        self.looked_at: float | None = None

    def look(self, batches: Sequence[str]) -> dict[str, list[Missing]]:
        """Members that have failed, and are no batches; who goes on, or may do so, is not sure.

        They are looked for. Who is found is so once more, a moment later: a worker may not have
        said yet that it has ended. Those that were sent again were somewhere: they are lost only
        if that is sure, at two looks.

        Raises:
            StoreAway: The store, or the broker's Redis, did not answer.
            Exception: What the broker's client raised.
        """
        self.looked_at = self.ledger.now()
        since = self.looked_at - self._lately
        members: dict[str, list[str]] = {}
        sought: dict[str, set[str]] = {}
        sent: dict[str, set[str]] = {}
        for batch in batches:
            there = dict.fromkeys(self.ledger.members_failed(batch))
            members[batch] = [one for one in there if self.ledger.state(one) is None]
            at = self.ledger.sent_again(batch, members[batch])
            sought[batch] = {one for one in members[batch] if at.get(one, 0.0) < since}
            sent[batch] = sought[batch].intersection(at)
        why = self._go_on(sought, sent)
        return {
            batch: [
                Named(one, why[batch][one], sure=False) if one in why[batch] else Named(one)
                for one in some
            ]
            for batch, some in members.items()
        }

    def _go_on(
        self, sought: Mapping[str, set[str]], sent: Mapping[str, set[str]]
    ) -> dict[str, dict[str, str]]:
        """Of each batch who goes on, or of those that were sent again may do so, and why."""
        left, doubts = self._search(sought)
        again = {
            batch: some.difference(left[batch].difference(() if batch in doubts else sent[batch]))
            for batch, some in sought.items()
        }
        why = {batch: dict.fromkeys(sent[batch] & left[batch], doubts[batch]) for batch in doubts}
        if any(again.values()):
            self._wait(self._pause)
            left, doubts = self._search(again)
            for batch, some in again.items():
                of = why.setdefault(batch, {})
                of.update(dict.fromkeys(some - left[batch], GOES_ON))
                if batch in doubts:
                    of.update(dict.fromkeys(sent[batch] & left[batch], doubts[batch]))
        return {batch: why.get(batch, {}) for batch in sought}

    def _search(
        self, members: Mapping[str, Collection[str]]
    ) -> tuple[dict[str, set[str]], dict[str, str]]:
        """Who is not found, and why it may be somewhere all the same."""
        sought = Sought(members)
        try:
            self._where.look(sought, again=True)
        except StoreForbidden as exc:
            return {b: {*some} for b, some in members.items()}, dict.fromkeys(members, str(exc))
        found = dict(sought)
        left = {batch: set(found.get(batch, ())) for batch in members}
        return left, {batch: doubt.why for batch, doubt in sought.doubts.items()}
