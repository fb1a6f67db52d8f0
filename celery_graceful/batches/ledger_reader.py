"""What the ledger is asked: how a batch stands, and who is in its sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from celery_graceful.batches.keys import INDEX, OUTBOX, key_named, key_of
from celery_graceful.batches.model import SENT_LATER, Callback, Due, Outcome, State
from celery_graceful.batches.search_state import callback_name
from celery_graceful.batches.status import FIELDS, Status
from celery_graceful.exceptions import UnknownBatch
from celery_graceful.store.scan import hash_pages, keys, pairs_of, set_members
from celery_graceful.store.store import Store

__all__ = ["CHUNK", "LedgerReader"]

#: Members in one command: Redis does nothing else meanwhile.
CHUNK = 500

_COUNTED = ("pending", "succeeded", "failed", "revoked", "kids")


class LedgerReader:
    """What the store knows of batches. All methods raise ``StoreAway``, too.

    Args:
        store: Where it is kept.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    # -- batches -------------------------------------------------------------------------------

    def status(self, batch_id: str) -> Status:
        """How it stands; costs the same with many members as with few.

        Raises:
            UnknownBatch: There is no such batch.
        """
        keys = [key_of(batch_id), *(key_of(batch_id, part) for part in _COUNTED)]
        pairs, *counts = self.store.run("batch_status", keys, FIELDS, insist=True)
        if not pairs:
            raise UnknownBatch(batch_id)
        return Status.of(batch_id, pairs_of(pairs), **dict(zip(_COUNTED, counts, strict=True)))

    def statuses(self, batch_ids: Iterable[str]) -> Iterator[Status]:
        """How they stand, without those that were forgotten meanwhile."""
        for batch_id in batch_ids:
            with suppress(UnknownBatch):
                yield self.status(batch_id)

    def state(self, batch_id: str, *, insist: bool = True) -> State | None:
        """What it is in; ``None`` if it is not known."""
        state = self.store.execute("HGET", [key_of(batch_id)], ["state"], insist=insist)
        return None if state is None else State(state)

    def of_key(self, key: str) -> str | None:
        """Id of the batch that has that key; ``None`` if there is none."""
        found = self.store.execute("GET", [key_named(key)], insist=True)
        return None if found is None or self.state(found) is None else str(found)

    def is_cancelled(self, batch_id: str) -> bool:
        """Whether it was cancelled."""
        return self.state(batch_id) is State.CANCELLED

    def members_pending(self, batch_id: str) -> Iterator[str]:
        """Ids of members that have not ended, some perhaps twice, in steps of a few hundred."""
        return self._scan(batch_id, "pending")

    def pending(self, batch_id: str, members: Sequence[str]) -> set[str]:
        """Which of them are members that have not ended."""
        return self._those_in(batch_id, "pending", members)

    def members_failed(self, batch_id: str) -> Iterator[str]:
        """Ids of members that have failed, some perhaps twice."""
        return self._scan(batch_id, "failed")

    def with_failures(self) -> Iterator[str]:
        """Ids of batches of which members have failed, of those that have ended, too.

        All keys of the store are looked at, some hundred in a step.
        """
        pattern = key_of("*", "failed")
        before, after = pattern.split("*")
        for key in keys(self.store, pattern, "set"):
            yield key.removeprefix(before).removesuffix(after)

    def kids(self, batch_id: str) -> Iterator[str]:
        """Ids of batches inside of it that have not ended, some perhaps twice."""
        return self._scan(batch_id, "kids")

    def with_kids(self, batch_id: str) -> Iterator[str]:
        """Its own id, and those of batches inside of it, at any depth, that have not ended."""
        yield batch_id
        for kid in self.kids(batch_id):
            yield from self.with_kids(kid)

    def messages(self, batch_id: str, members: Sequence[str]) -> dict[str, bytes]:
        """The messages of some of its members; without those that are not kept."""
        found: dict[str, bytes] = {}
        for start in range(0, len(members), CHUNK):
            some = members[start : start + CHUNK]
            texts = self.store.execute("HMGET", [key_of(batch_id, "messages")], some, insist=True)
            for member, text in zip(some, texts, strict=True):
                if text is not None:
                    found[member] = text.encode("utf-8", "surrogateescape")
        return found

    def outcomes(self, batch_id: str, members: Sequence[str]) -> dict[str, Outcome]:
        """How some of its members have ended; without those that have not, or are unknown."""
        found: dict[str, Outcome] = {}
        for how in Outcome:
            found.update(dict.fromkeys(self._those_in(batch_id, how.value, members), how))
        return found

    def stood_still(self, seconds: float) -> list[str]:
        """Batches that have not ended, and have not moved for so long."""
        there: list[str] = []
        looked = CHUNK
        while looked == CHUNK:
            args = [int(seconds * 1000), CHUNK, len(there)]
            looked, *found = self._run("batch_still", *args)
            there += found
        return there

    def is_left(self, batch_id: str, silent: float) -> bool:
        """Whether it is inside of another one, and nobody sends the rest of it, or will.

        The task that was adding it has ended; or that other one has been sent without it, or is
        gone.

        Args:
            batch_id: The batch.
            silent: Seconds after which who sends one, and is not heard of, is dead.
        """
        fields = ["state", "parent", "adds", "heard"]
        found = self.store.execute("HMGET", [key_of(batch_id)], fields, insist=True)
        state, parent, adds, heard = found
        if state not in SENT_LATER or None in (parent, heard):
            return False
        if self._now() - int(heard) < silent * 1000:
            return False
        of = self.state(parent)
        if of is None:  # it was dropped
            return True
        if not adds:  # by who sends the parent
            return of not in SENT_LATER
        name = callback_name(adds)
        if name is None:
            return adds not in self.pending(parent, [adds])
        fired = self.store.execute("HGET", [key_of(parent)], [f"fired:{name}"], insist=True)
        return bool(fired == "ended")

    def kids_sent_later(self, batch_id: str) -> list[str]:
        """Ids of batches inside of it that producers have begun, and not sent whole."""
        found = []
        for kid in {*self.kids(batch_id)}:
            fields = ["state", "adds"]
            state, adds = self.store.execute("HMGET", [key_of(kid)], fields, insist=True)
            if state in SENT_LATER and adds is None:
                found.append(kid)
        return found

    def unsent(self, batch_id: str, members: Sequence[str]) -> set[str]:
        """Of some members, those of which it is not known that they were sent."""
        return self._those_in(batch_id, "unsent", members)

    def sent_again(self, batch_id: str, members: Sequence[str]) -> dict[str, float]:
        """Of some members, when those were sent again that have not ended since: its clock."""
        found: dict[str, float] = {}
        for start in range(0, len(members), CHUNK):
            some = members[start : start + CHUNK]
            at = self.store.execute("HMGET", [key_of(batch_id, "resent")], some, insist=True)
            sent = zip(some, at, strict=True)
            # Those that have ended have a second number.
            found.update((m, int(text) / 1000) for m, text in sent if text and text.isdecimal())
        return found

    def registered(self, batch_id: str, members: Sequence[str]) -> set[str]:
        """Of some members, those that are registered, whatever has become of them."""
        return self._those_in(batch_id, "pending", members).union(self.outcomes(batch_id, members))

    def count_given(self, batch_id: str) -> int:
        """How many of its members its producers have registered; batches inside are not counted.

        Not those that its members, and callbacks, have added.
        """
        fields = ["total", "inside"]
        found = self.store.execute("HMGET", [key_of(batch_id)], fields, insist=True)
        total, inside = (int(number or 0) for number in found)
        places = self.store.execute("HLEN", [key_of(batch_id, "places")], [], insist=True)
        return int(total - inside - places)

    def has_place(self, batch_id: str, place: str) -> bool:
        """Whether a batch inside of it stands in that place."""
        key = [key_of(batch_id, "places")]
        return bool(self.store.execute("HEXISTS", key, [place], insist=True))

    # -- callbacks -----------------------------------------------------------------------------

    def outbox(self, waiting: float = 0.0) -> list[Due]:
        """Callbacks that are due, and have been for ``waiting`` seconds."""
        before = self._now() - int(waiting * 1000)
        found: dict[str, str] = {}
        for page in hash_pages(self.store, OUTBOX, CHUNK):
            found.update(page)
        return [Due.parse(text) for text, since in found.items() if int(since) <= before]

    def callback(self, due: Due) -> Callback:
        """What to send.

        Raises:
            UnknownBatch: There is no such batch, or it has no such callback.
        """
        field = f"callback:{due.name}"
        text = self.store.execute("HGET", [key_of(due.batch)], [field], insist=True)
        if text is None:
            raise UnknownBatch(due.batch)
        return Callback.from_json(text)

    def due_for(self, due: Due) -> float:
        """Seconds for which a callback has been in the outbox."""
        since = self.store.execute("HGET", [OUTBOX], [str(due)], insist=True)
        return 0.0 if since is None else (self._now() - int(since)) / 1000

    def has_begun(self, due: Due) -> bool:
        """Whether a copy of a callback has begun, and not ended: it runs, or its worker died."""
        fields = [f"copy:{due.name}", f"begun:{due.name}", f"fired:{due.name}"]
        *begun, fired = self.store.execute("HMGET", [key_of(due.batch)], fields, insist=True)
        return any(begun) and fired != "ended"

    def copy_of(self, due: Due) -> str:
        """Which copy of a callback has begun, and how often it was sent by hand."""
        fields = [f"copy:{due.name}", f"begun:{due.name}", f"round:{due.name}"]
        found = self.store.execute("HMGET", [key_of(due.batch)], fields, insist=True)
        return "/".join(text or "" for text in found)

    # -- asking ----------------------------------------------------------------------------------

    def _run(self, script: str, *args: Any) -> Any:
        return self.store.run(script, [INDEX, OUTBOX], [self.store.prefix, *args], insist=True)

    def now(self) -> float:
        """Seconds of the server's clock."""
        return self._now() / 1000

    def _now(self) -> int:
        """Milliseconds of the server's clock, as scripts note them."""
        seconds, microseconds = map(int, self.store.execute("TIME", [], insist=True))
        return seconds * 1000 + microseconds // 1000

    def _those_in(self, batch_id: str, part: str, members: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for start in range(0, len(members), CHUNK):
            some = members[start : start + CHUNK]
            are = self.store.execute("SMISMEMBER", [key_of(batch_id, part)], some, insist=True)
            found.update(one for one, is_one in zip(some, are, strict=True) if is_one)
        return found

    def _scan(self, batch_id: str, part: str) -> Iterator[str]:
        return set_members(self.store, key_of(batch_id, part), CHUNK)
