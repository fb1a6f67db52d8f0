"""The ledger: which members of a batch have not ended, and what has become due.

A set of ids, never a counter: that an id leaves the pending ones is what counts, so ending twice is
ending once. Each method is one script, or several that may be interrupted between them: asked
again, each goes on where it stood. Their keys are in ``keys.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from kombu.utils.json import dumps

from celery_graceful.batches.end_texts import AnyEnd, end_texts
from celery_graceful.batches.keys import INDEX, OUTBOX, key_of
from celery_graceful.batches.model import Callback, Due, End, Outcome
from celery_graceful.batches.status import FIELDS, State, Status
from celery_graceful.exceptions import BatchFinished, UnknownBatch
from celery_graceful.store.scan import hash_pages, pairs_of, set_members
from celery_graceful.store.store import Store

__all__ = ["ANY", "CHUNK", "CHUNK_BYTES", "INDEX", "OUTBOX", "BatchLedger"]

#: Members in one command, and the most bytes of their messages: Redis does nothing else meanwhile.
CHUNK, CHUNK_BYTES = 500, 1024 * 1024

#: Members that are given up in one script.
GIVEN_UP = 200

#: A task that does not end a callback, with another id in each copy.
ANY = "*"

_UNKNOWN = "unknown"
_COUNTED = ("pending", "succeeded", "failed", "revoked", "kids")


class BatchLedger:
    """What the store knows of batches. All methods but ``end`` raise ``StoreAway``, too.

    Args:
        store: Where it is kept.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    # -- before, and while, members are sent ----------------------------------------------

    def create(
        self,
        batch_id: str,
        *,
        ttl: float,
        linger: float,
        callbacks: Mapping[str, Callback] | None = None,
        kind: str = "batch",
        description: str = "",
        properties: Mapping[str, Any] | None = None,
        parent: str | None = None,
        inside: str | None = None,
        broker: str = "",
    ) -> None:
        """Open a batch. It is a member of its parent from then on, under its own id.

        Args:
            batch_id: Without ``/``.
            ttl: Seconds that it lives after each end of a member.
            linger: Seconds that it lives after its end.
            callbacks: By their names.
            kind: ``"batch"`` or ``"chord"``.
            description: For people.
            properties: Something small, that JSON can say.
            parent: The batch that it is inside of.
            inside: Who adds it there; see ``add``.
            broker: Where its members are sent, if several brokers share the store.

        Raises:
            BatchFinished: Nothing can be added to the parent.
            UnknownBatch: There is no such parent.
        """
        fields = {"kind": kind, "description": description, "properties": dumps(properties or {})}
        fields |= {"broker": broker} if broker else {}
        for name, callback in (callbacks or {}).items():
            fields[f"callback:{name}"] = callback.to_json()
        lives = [_milliseconds(ttl), _milliseconds(linger)]
        args = [parent or "", inside or "", *lives, *(x for pair in fields.items() for x in pair)]
        refused = self._run("batch_create", batch_id, *args)
        _check(parent or batch_id, refused)

    def begin_sending(self, batch_id: str) -> None:
        """Sending begins, or goes on after its producer has died.

        Raises:
            BatchFinished: It has been sent, or was cancelled.
            UnknownBatch: There is no such batch.
        """
        _check(batch_id, self._run("batch_sending", batch_id))

    def add(
        self, batch_id: str, members: Iterable[tuple[str, bytes]], *, inside: str | None = None
    ) -> int:
        """Register members, before they are sent. Those that are registered stay as they are.

        Args:
            batch_id: The batch.
            members: Their ids, and their messages for when they have to be sent again.
            inside: Who adds them after it was sent: the id of a member that runs, or
                ``"callback:<name>"``.

        Returns:
            How many are new.

        Raises:
            BatchFinished: It is too late for that; some chunks of 500 may be registered.
            UnknownBatch: There is no such batch.
        """
        new = 0
        for chunk in _chunks(members):
            args = (x for pair in chunk for x in pair)
            added = self._run("batch_add", batch_id, inside or "", *args)
            _check(batch_id, added)
            new += added
        return new

    def note_unsent(self, batch_id: str, members: Sequence[str], is_so: bool = True) -> None:
        """Members were registered, and it is not known that they were sent; or now it is."""
        for start in range(0, len(members), CHUNK):
            some = members[start : start + CHUNK]
            self._run("batch_unsent", batch_id, "1" if is_so else "", *some)

    def unsent(self, batch_id: str, members: Sequence[str]) -> set[str]:
        """Of some members, those of which it is not known that they were sent."""
        return self._those_in(batch_id, "unsent", members)

    def registered(self, batch_id: str, members: Sequence[str]) -> set[str]:
        """Of some members, those that are registered, whatever has become of them."""
        return self._those_in(batch_id, "pending", members).union(self.outcomes(batch_id, members))

    def sent(self, batch_id: str) -> list[Due]:
        """All members have been sent. An empty batch is complete here.

        Raises:
            UnknownBatch: There is no such batch.
        """
        return _dues(batch_id, self._run("batch_sent", batch_id))

    # -- ends --------------------------------------------------------------------------------

    def end(
        self, ends: Sequence[End], claims: Sequence[tuple[str, int] | None] | None = None
    ) -> list[Due]:
        """Members end, with their claims. What is not known, or has ended, changes nothing.

        Args:
            ends: The ends.
            claims: Of each, in place of those that they name.

        Returns:
            Callbacks that have become due.

        Raises:
            StoreAway: Some of it may have been done; it can be asked for again, all of it.
        """
        return self.end_and_look(ends, claims)[0]

    def end_and_look(
        self, ends: Sequence[AnyEnd], claims: Sequence[tuple[str, int] | None] | None = None
    ) -> tuple[list[Due], list[str]]:
        """As ``end``; and which of their batches are known, and not cancelled."""
        due: list[Due] = []
        going: list[str] = []
        claims = [end[3] for end in ends] if claims is None else claims
        for text in end_texts(ends, claims):
            found, are_going = self._run("batch_end", text)
            due += Due.parse_all(found)
            going += are_going
        return due, going

    def callback_ended(
        self,
        batch_id: str,
        name: str,
        claim: tuple[str, int] | None = None,
        *,
        kept: bool = False,
    ) -> list[Due]:
        """A callback has ended, whatever it came to, with its claim.

        Args:
            batch_id: The batch.
            name: Of the callback.
            claim: As that of an ``End``.
            kept: Its message is kept (in quarantine): sent again, it runs again.
        """
        args = ["1" if kept else "", *(claim or ("", ""))]
        return _dues("", self._run("batch_callback", batch_id, name, *args))

    def cancel(self, batch_id: str) -> list[Due]:
        """Cancel a batch and those inside of it. Nothing, if all members have ended.

        Raises:
            UnknownBatch: There is no such batch.
        """
        due = _dues(batch_id, self._run("batch_cancel", batch_id))
        waiting = [batch_id]
        while waiting:
            parent = waiting.pop()
            if self.is_cancelled(parent):
                for kid in list(self._scan(parent, "kids")):
                    try:
                        due += _dues(kid, self._run("batch_cancel", kid))
                        waiting.append(kid)
                    except UnknownBatch:
                        pass  # it has expired, or was dropped
        return due

    def complete(self, batch_id: str) -> list[Due]:
        """Complete a batch by force: who has not ended has failed.

        Where all members have ended, callbacks that were published count as ended.

        Raises:
            UnknownBatch: There is no such batch.
        """
        due: list[Due] = []
        again, left = "", 1
        while left:
            answer = self._run("batch_complete", batch_id, GIVEN_UP, again)
            if answer == _UNKNOWN:
                raise UnknownBatch(batch_id)
            left, again = answer[0], "1"
            due += _dues(batch_id, answer[1:])
        return due

    def drop(self, batch_id: str) -> list[Due]:
        """Forget a batch; to its parent it was revoked. Its members run on, and count nowhere.

        Raises:
            UnknownBatch: There is no such batch.
        """
        return _dues(batch_id, self._run("batch_drop", batch_id))

    # -- how it stands -------------------------------------------------------------------------

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

    def state(self, batch_id: str, *, insist: bool = True) -> State | None:
        """What it is in; ``None`` if it is not known."""
        state = self.store.execute("HGET", [key_of(batch_id)], ["state"], insist=insist)
        return None if state is None else State(state)

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

    def kids(self, batch_id: str) -> Iterator[str]:
        """Ids of batches inside of it that have not ended, some perhaps twice."""
        return self._scan(batch_id, "kids")

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

    def look(self, batch_id: str) -> list[Due]:
        """See whether something has been missed: an error in a script, an outbox that was lost.

        Raises:
            UnknownBatch: There is no such batch.
        """
        return _dues(batch_id, self._run("batch_look", batch_id))

    def stood_still(self, seconds: float) -> list[str]:
        """Batches that have not ended, and have not moved for so long."""
        there: list[str] = []
        looked = CHUNK
        while looked == CHUNK:
            args = [int(seconds * 1000), CHUNK, len(there)]
            looked, *found = self._run("batch_still", *args)
            there += found
        return there

    def note_missing(self, batch_id: str, count: int) -> None:
        """Say how many members were found missing, for ``status``."""
        self.store.run("batch_missing", [key_of(batch_id)], [count], insist=True)

    # -- callbacks -----------------------------------------------------------------------------

    def outbox(self, waiting: float = 0.0) -> list[Due]:
        """Callbacks that are due, and have been for ``waiting`` seconds."""
        seconds, microseconds = map(int, self.store.execute("TIME", [], insist=True))
        before = seconds * 1000 + microseconds // 1000 - int(waiting * 1000)
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

    def published(
        self,
        due: Due,
        *,
        list_key: str | None = None,
        bell: str | None = None,
        message: str | bytes | None = None,
    ) -> bool:
        """Take a callback out of the outbox, since it is published, or in the step that does.

        Args:
            due: The callback.
            list_key: The list that ``message`` goes into, without the store's prefix.
            bell: The bell to ring for it, likewise.
            message: As it has to stand in that list.

        Returns:
            Whether it was still there; if not, nothing was pushed.
        """
        keys = [INDEX, OUTBOX, *(key for key in (list_key, bell) if key)]
        args = [self.store.prefix, due.batch, due.name, "" if message is None else message]
        return bool(self.store.run("batch_published", keys, args, insist=True))

    def may_run(self, batch_id: str, name: str, copy: str, *, part: str = "") -> bool:
        """Whether that copy of a callback may run: it asked first, and has not ended.

        Args:
            batch_id: The batch.
            name: Of the callback.
            copy: Which one.
            part: A task asks that does not end it: its id, if that is the same in all copies,
                or ``ANY``.
        """
        keys = [key_of(batch_id), key_of(batch_id, "copies")]
        return bool(self.store.run("batch_copy", keys, [name, copy, part], insist=True))

    def has_begun(self, due: Due) -> bool:
        """Whether a copy of a callback has begun, and not ended: it runs, or its worker died."""
        fields = [f"copy:{due.name}", f"begun:{due.name}", f"fired:{due.name}"]
        *begun, fired = self.store.execute("HMGET", [key_of(due.batch)], fields, insist=True)
        return any(begun) and fired != "ended"

    def fire(self, batch_id: str, name: str) -> list[Due]:
        """Have a callback sent now, or again, whatever the batch waits for. Not if it has ended.

        See before that it is not on its way: where two are, the first one that asks runs.

        Raises:
            UnknownBatch: There is no such batch.
        """
        return _dues(batch_id, self._run("batch_fire", batch_id, name))

    # -- asking ----------------------------------------------------------------------------------

    def _run(self, script: str, *args: Any) -> Any:
        return self.store.run(script, [INDEX, OUTBOX], [self.store.prefix, *args], insist=True)

    def _those_in(self, batch_id: str, part: str, members: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for start in range(0, len(members), CHUNK):
            some = members[start : start + CHUNK]
            are = self.store.execute("SMISMEMBER", [key_of(batch_id, part)], some, insist=True)
            found.update(one for one, is_one in zip(some, are, strict=True) if is_one)
        return found

    def _scan(self, batch_id: str, part: str) -> Iterator[str]:
        return set_members(self.store, key_of(batch_id, part), CHUNK)


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))


def _check(batch_id: str, answer: Any) -> None:
    if answer == _UNKNOWN:
        raise UnknownBatch(batch_id)
    if isinstance(answer, str) and answer:
        raise BatchFinished(batch_id, answer)


def _dues(batch_id: str, answer: Any) -> list[Due]:
    if answer == _UNKNOWN:
        raise UnknownBatch(batch_id)
    return Due.parse_all(answer)


def _chunks(members: Iterable[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    chunk: list[tuple[str, bytes]] = []
    size = 0
    for member, message in members:
        chunk.append((member, message))
        size += len(message)
        if len(chunk) == CHUNK or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
