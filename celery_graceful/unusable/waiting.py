"""Messages that wait for a worker that knows their task: new code sends them, old code gets them.

They wait in Redis, beside the claims, or in the store of a broker without claims. A worker that
knows the name takes them from here at once. For others that know it and nothing of this package
they also go back to their queues now and then: after a second, and later and later, up to half a
minute. Keys, each after the key prefix of the connection (``<broker>`` stands where the store is
not the broker: some may share it):

``graceful:waiting[:<broker>]``
    Hash: queue, zero byte, task name -> how many. ``...:messages``, ``...:due``, ``...:of:<kind>``:
    see ``store/lua/waiting.lua``.
``graceful:waited:<task id>``
    When it came here for the first time; as long as it may wait, and an hour.
``graceful:aside:<task id>``
    Of those without a claim, which delivery was set aside last; for as long.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from celery_graceful.claims.claimant import WORKERS, claims_key
from celery_graceful.claims.held_claims import Claims
from celery_graceful.poison.quarantine import Kept
from celery_graceful.store.scan import hash_pages, pairs_of
from celery_graceful.store.store import Store, StoreAway

__all__ = ["AT_ONCE", "Kind", "Stray", "WaitingRoom"]

#: Messages in one step; and those that go back to their queues in one round, whoever asks.
AT_ONCE, RETURNED = 250, 100

#: Milliseconds of a round.
ROUND = 900

#: Seconds for which a message that is being sent is nobody else's, and for which its age is known
#: beyond its patience: the time that it may spend in its queue.
LENT, REMEMBERED = 30, 3600


class Kind(NamedTuple):
    """Messages of one queue for one task."""

    queue: str
    name: str


class Stray(NamedTuple):
    """A message whose task is not known here.

    Attributes:
        id: Of the task.
        kind: Its queue and its task. Of a claim, the queue is known by the claim.
        number: Of its claim; ``""`` where there are no claims.
        text: What is kept of it; ``""`` of a claim.
        fingerprint: Of those without a claim: tells it from others, and is the same when it is
            delivered again.
        again: It was delivered before, so it may wait already.
        delivery: Of those without a claim: the same when it is set aside again for want of an
            answer, and of no other one.
    """

    id: str
    kind: Kind
    number: str = ""
    text: str = ""
    fingerprint: str = ""
    again: bool = False
    delivery: str = ""

    @property
    def entry(self) -> str:
        """Under which it is kept."""
        return f"{self.id}/{self.number or self.fingerprint}"


class WaitingRoom:
    """Where they wait.

    Args:
        store: The Redis.
        broker: Where the store is not the broker, which one this is.
    """

    def __init__(self, store: Store, broker: str = "") -> None:
        self.store = store
        self.broker = broker
        self._kinds = f"graceful:waiting:{broker}" if broker else "graceful:waiting"
        #: Loans of what has been sent, as far as the store has not said that it knows.
        self._sent: list[str] = []

    def _run(self, command: str, args: Iterable[Any], *keys: str, insist: bool = True) -> Any:
        base = [self._kinds, f"{self._kinds}:messages", f"{self._kinds}:due", *keys]
        return self.store.run("waiting", base, [self.store.prefix, command, *args], insist=insist)

    def wait(self, worker: str, patience: float, strays: Sequence[Stray]) -> list[str]:
        """Set messages aside; from their claims in the same step.

        Args:
            worker: Whose claims they are, if they are.
            patience: Seconds that one may wait in all.
            strays: The messages.

        Returns:
            For each ``waits``; ``over``, which has waited for long enough and was not set aside;
            or ``gone``: the claim is somebody else's.

        Raises:
            StoreAway: It may have been done or not; it can be done again.
        """
        args: list[Any] = [patience, int((patience + REMEMBERED) * 1000), self.store.separator]
        for stray in strays:
            again = "1" if stray.again else ""
            args += [stray.number, stray.entry, *stray.kind, stray.id, stray.text, again]
            args.append(stray.delivery)
        return list(self._run("wait", args, claims_key(worker)))

    def kinds(self, age: float = 0.0) -> dict[Kind, int]:
        """What waits, and how many of each.

        Args:
            age: Where nothing was seen to wait, for how many seconds nothing does.

        Raises:
            StoreAway: The store does not answer.
        """
        if age and not self.store.any_exists(self._kinds, age=age):
            return {}
        found = pairs_of(self.store.execute("HGETALL", [self._kinds]))
        return {Kind(*key.split("\0", 1)): int(count) for key, count in found.items()}

    def find(self, task_id: str) -> Kind | None:
        """What the message of a task is, if it waits here. All that waits is read.

        Raises:
            StoreAway: The store does not answer.
        """
        for page in hash_pages(self.store, f"{self._kinds}:messages"):
            for entry in page.values():
                queue, name, found = (*entry.split("\0", 3), "", "", "")[:3]
                if found == task_id:
                    return Kind(queue, name)
        return None

    def take(self, book: Claims, kind: Kind, most: int) -> list[tuple[str, str, Any]]:
        """Make messages that wait claims of this worker, which knows their task.

        Returns:
            For each its list, the message and its tag.

        Raises:
            StoreAway: They may be claims now, that nobody has heard of: they go back.
        """
        who = book.who
        if who is None:
            return []
        first, epoch = who.take_numbers(most), who.epoch
        args = [who.worker, first, "\0".join(kind), most]
        try:
            found = self._run("take", args, claims_key(who.worker), WORKERS)
        except StoreAway:
            book.give_back_late(who.worker, range(first, first + most))
            raise
        pairs = zip(found[::2], found[1::2], strict=True)
        return [
            (list_, text, book.tag(who.worker, number, list_, epoch))
            for number, (list_, text) in enumerate(pairs, first)
        ]

    def back(self, *, everything: bool = False) -> int:
        """Give claims that wait back to the lists that they came from: those that are due.

        Args:
            everything: All of them, ``AT_ONCE`` in one step.

        Returns:
            How many went back.

        Raises:
            StoreAway: The store does not answer.
        """
        args = (0, AT_ONCE, "all") if everything else (ROUND, RETURNED, "due")
        return int(self._run("back", args))

    def lend(self, kind: Kind | None, most: int) -> list[tuple[str, Kept]]:
        """Messages to send, and then to ``drop``; others get them later if that is not done.

        Args:
            kind: Which; ``None`` for those that are due.
            most: How many.

        Returns:
            Of each the loan, and what is kept of it.

        Raises:
            StoreAway: The store does not answer.
        """
        self.drop(())
        wanted = "" if kind is None else "\0".join(kind)
        args = (ROUND if kind is None else 0, most, LENT, wanted)
        found = self._run("lend", args)
        return [(loan, Kept.from_json(text)) for loan, text in pairs_of(found).items()]

    def drop(self, loans: Sequence[str]) -> None:
        """They have been sent.

        Raises:
            StoreAway: They are dropped before more is lent, or sent again after a while.
        """
        self._sent += loans
        if self._sent:
            self._run("drop", self._sent)
            self._sent = []
