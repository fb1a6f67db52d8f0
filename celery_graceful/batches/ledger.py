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
from celery_graceful.batches.ledger_reader import CHUNK, LedgerReader
from celery_graceful.batches.member_part import fields_of
from celery_graceful.batches.model import Adds, Callback, Due, End, Opened, Place, State
from celery_graceful.batches.sent_again import Lately
from celery_graceful.exceptions import BatchFinished, UnknownBatch

__all__ = ["ANY", "CHUNK", "CHUNK_BYTES", "INDEX", "LEFT", "OUTBOX", "BatchLedger"]

#: Most bytes of messages in one command: Redis does nothing else meanwhile.
CHUNK_BYTES = 1024 * 1024

#: Members that are given up in one script.
GIVEN_UP = 200

#: Seconds for which a callback is left to who made it due, or publishes it.
LEFT = 2.0

#: A task that does not end a callback, with another id in each copy.
ANY = "*"

_UNKNOWN, _BUSY = "unknown", "busy"


class BatchLedger(LedgerReader):
    """What the store knows of batches, and is told. All methods raise ``StoreAway``, too.

    Args:
        store: Where it is kept.
    """

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
        sender: str = "",
        adds: Adds | None = None,
        silent: float = 0.0,
        place: Place | None = None,
        key: str = "",
        broker: str = "",
    ) -> Opened | None:
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
            sender: Who sends it from now on; without, nobody does before ``begin_sending``.
            adds: The task that adds it there: run again it goes on with what it had begun.
            silent: Seconds for which another run that sends one like it, or another producer the
                one of that key, may be silent, and is waited for; 0: it is not.
            place: Where it stands in what is sent to its parent: if one stood there before,
                when that was sent by who died, it goes on with that one.
            key: Only one batch has it at a time: if there is one, it is that one.
            broker: Where its members are sent, if several brokers share the store.

        Returns:
            It; or one which it goes on with, or that stands. ``None``: another run, or another
            producer, may send that one.

        Raises:
            BatchFinished: Nothing can be added to the parent.
            UnknownBatch: There is no such parent.
        """
        fields = {"kind": kind, "description": description, "properties": dumps(properties or {})}
        fields |= {"broker": broker} if broker else {}
        for name, callback in (callbacks or {}).items():
            fields[f"callback:{name}"] = callback.to_json()
        lives = [_milliseconds(ttl), _milliseconds(linger)]
        who = [sender, *(adds or ("", "", "")), int(silent * 1000), *(place or ("", ""))]
        args = [
            parent or "",
            inside or "",
            *lives,
            *who,
            key,
            *(x for pair in fields.items() for x in pair),
        ]
        refused, found, was = self._run("batch_create", batch_id, *args)
        if refused == _BUSY:
            return None
        _check(parent or batch_id, refused)
        return Opened(found, State(was) if was else None)

    def begin_sending(self, batch_id: str, sender: str = "") -> None:
        """Sending begins, or goes on after its producer has died.

        Args:
            batch_id: The batch.
            sender: By what this producer is known from now on. One before it is refused.

        Raises:
            BatchFinished: It has been sent, or was cancelled.
            UnknownBatch: There is no such batch.
        """
        _check(batch_id, self._run("batch_sending", batch_id, sender))

    def still_sends(self, batch_id: str, sender: str, is_so: bool = True) -> None:
        """Who sends a batch is at it still, or does not go on with it."""
        self._run("batch_heard", batch_id, sender, "1" if is_so else "")

    def add(
        self,
        batch_id: str,
        members: Iterable[tuple[str, bytes]],
        *,
        inside: str | None = None,
        sender: str = "",
    ) -> int:
        """Register members, before they are sent. Those that are registered stay as they are.

        Args:
            batch_id: The batch.
            members: Their ids, and their messages for when they have to be sent again.
            inside: Who adds them after it was sent: the id of a member that runs, or
                ``"callback:<name>"``.
            sender: Who sends all of it; see ``begin_sending``.

        Returns:
            How many are new.

        Raises:
            BatchFinished: It is too late for that; some chunks of 500 may be registered.
            UnknownBatch: There is no such batch.
        """
        new = 0
        for chunk in _chunks(members):
            args = (x for pair in chunk for x in pair)
            added = self._run("batch_add", batch_id, inside or "", sender, *args)
            _check(batch_id, added)
            new += added
        return new

    def note_unsent(self, batch_id: str, members: Sequence[str], is_so: bool = True) -> None:
        """Members were registered, and it is not known that they were sent; or now it is."""
        for start in range(0, len(members), CHUNK):
            some = members[start : start + CHUNK]
            self._run("batch_unsent", batch_id, "1" if is_so else "", *some)

    def sent(self, batch_id: str, sender: str = "") -> list[Due]:
        """All members have been sent. An empty batch is complete here.

        Args:
            batch_id: The batch.
            sender: Who has sent it; without it, it is, whoever does.

        Raises:
            BatchFinished: Another one sends it now.
            UnknownBatch: There is no such batch.
        """
        return _dues(batch_id, self._run("batch_sent", batch_id, sender))

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
        claims = [fields_of(end)[3] for end in ends] if claims is None else claims
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
        """Complete a batch by force: who has not ended, or was not sent yet, has failed.

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

    def drop(self, batch_id: str, sender: str = "") -> list[Due]:
        """Forget a batch; to its parent it was revoked. Its members run on, and count nowhere.

        Args:
            batch_id: The batch.
            sender: Only if that one sends it, and has not registered a member.

        Raises:
            BatchFinished: Another one sends it now, or has.
            UnknownBatch: There is no such batch.
        """
        return _dues(batch_id, self._run("batch_drop", batch_id, sender))

    def look(self, batch_id: str) -> list[Due]:
        """See whether something has been missed: an error in a script, an outbox that was lost.

        Raises:
            UnknownBatch: There is no such batch.
        """
        return _dues(batch_id, self._run("batch_look", batch_id))

    def send_again(self, batch_id: str, members: Sequence[str], lately: Lately) -> set[str]:
        """Members, or callbacks, are about to be sent again, by one of those who would.

        Args:
            batch_id: The batch.
            members: Those, 500 at most.
            lately: Left out is what somebody has sent again since then.

        Returns:
            Those that are to be sent.
        """
        since = [int(seconds * 1000) for seconds in lately]
        return {*self._run("batch_again", batch_id, *since, *members)}

    def not_sent_again(self, batch_id: str, members: Sequence[str]) -> None:
        """They could not be sent."""
        self.store.execute("HDEL", [key_of(batch_id, "resent")], members, insist=True)

    def may_say_left(self, batch_id: str) -> bool:
        """Whether it was not said before that who sends it has died; from now on it is."""
        return bool(self.store.run("batch_left", [key_of(batch_id)], [], insist=True))

    def note_missing(self, batch_id: str, count: int) -> None:
        """Say how many members were found missing, for ``status``."""
        self.store.run("batch_missing", [key_of(batch_id)], [count], insist=True)

    # -- callbacks -----------------------------------------------------------------------------

    def begin_publishing(self, due: Due, *, again: bool = False) -> bool:
        """Say that it is being published, in several steps: others leave it alone for ``LEFT``.

        Args:
            due: The callback.
            again: It is so still.

        Returns:
            Whether it may be: it is in the outbox, and nobody else does so.
        """
        told = _milliseconds(LEFT), "1" if again else ""
        return bool(self._run("batch_publishing", due.batch, due.name, *told))

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

    def fire(self, batch_id: str, name: str, seen: str = "") -> list[Due]:
        """Have a callback sent now, or again, whatever the batch waits for. Not if it has ended.

        See before that it is not on its way: where two are, the first one that asks runs.

        Args:
            batch_id: The batch.
            name: Of the callback.
            seen: What ``copy_of`` said: not if another copy has begun, or was sent by hand, since.

        Raises:
            UnknownBatch: There is no such batch.
        """
        return _dues(batch_id, self._run("batch_fire", batch_id, name, seen))


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))


def _check(batch_id: str, answer: Any) -> None:
    if answer == _UNKNOWN:
        raise UnknownBatch(batch_id)
    if isinstance(answer, str) and answer:
        raise BatchFinished(batch_id, answer)


def _dues(batch_id: str, answer: Any) -> list[Due]:
    _check(batch_id, answer)
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
