"""How claims are read and moved in Redis: in short commands, however large the messages are.

What goes back is marked, which takes a parser of JSON: Python does that. But the body of a
message is not looked at and stays in Redis: of what is fetched and sent again, it is cut out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps

from celery_graceful.claims.claimant import claims_key, tombstone_key
from celery_graceful.claims.lease_validity import EPOCH
from celery_graceful.claims.undelivered import Fetched
from celery_graceful.messages.redelivered_flag import split
from celery_graceful.store.store import COMMAND_TIMEOUT, Store
from celery_graceful.system.portions import BYTES, COUNT, portions

__all__ = ["Move", "entry_of", "from_entry", "move", "read"]

#: How a message begins whose body was cut out.
CUT = '{"body": ""'


class Found(NamedTuple):
    """What was read of a claim.

    Attributes:
        number: Its own.
        entry: ``None`` if it is there no more.
        cut: The body was cut out.
        epoch: In which it was read.
    """

    number: int
    entry: str | None
    cut: bool
    epoch: str


class Move(NamedTuple):
    """One claim that goes back.

    Attributes:
        number: Of the claim.
        list: The key of the list that it came from, with its prefix.
        text: The message, as it goes back.
        epoch: In which it was seen as a claim, where who asks has the message in memory.
        cut: Its body is missing: it is that of the claim.
    """

    number: int
    list: str
    text: str
    epoch: str = ""
    cut: bool = False

    @property
    def size(self) -> int:
        """Characters that are sent."""
        return len(self.list) + len(self.text)


def entry_of(message: Any) -> tuple[int, str]:
    """The number of a claim and what is written for it, as the script that claims does."""
    tag = message.delivery_tag
    text = bytes_to_str(message.text) if isinstance(message, Fetched) else dumps(message._raw)
    return tag.number, f"{tag.source}\0{text}"


def from_entry(number: int, entry: str, *, begun: bool, epoch: str = "", cut: bool = False) -> Move:
    """The move of a claim with that entry, marked as redelivered.

    Args:
        number: Of the claim.
        entry: What was read of it, or would be.
        begun: A run of it has begun: from now on it does not expire.
        epoch: In which it was seen as a claim, where who asks has the message in memory.
        cut: Its body was cut out.
    """
    key, text = split(entry, begun=begun)
    return Move(number, key, text, epoch, cut and text.startswith(CUT))


def read(
    store: Store,
    worker: str,
    numbers: Sequence[int],
    *,
    whole: bool = False,
    timeout: float = COMMAND_TIMEOUT,
    insist: bool = False,
) -> Iterator[list[Found]]:
    """Read claims, some at a time.

    Args:
        store: Where they are.
        worker: Whose they are.
        numbers: Of the claims; as many at a time as one command gets to.
        whole: With bodies.
        timeout: Seconds for each command.
        insist: Ask also when the store was away a moment ago.

    Raises:
        StoreAway: Redis did not answer.
    """
    start, how = 0, "whole" if whole else "cut"
    while start < len(numbers):
        part = numbers[start : start + COUNT]
        keys, args = [claims_key(worker), EPOCH], [BYTES, how, *part]
        *answer, epoch = store.run("heads", keys, args, timeout=timeout, insist=insist)
        found = zip(part, answer[::2], answer[1::2], strict=False)
        start += len(answer) // 2
        yield [Found(number, entry, bool(cut), epoch) for number, entry, cut in found]


def move(store: Store, worker: str, moves: Sequence[Move], *, tail: bool, timeout: float) -> int:
    """Move claims to their lists, one after the other; how many were there.

    Args:
        store: Where they are.
        worker: Whose they are.
        moves: What goes back, in that order.
        tail: Each goes behind all that waits, else in front of it.
        timeout: Seconds for each command.

    Raises:
        StoreAway: Redis did not answer: some may have been moved.
    """
    keys = [claims_key(worker), EPOCH, tombstone_key(worker), f"graceful:back:{worker}"]
    moved = 0
    for portion in portions(moves, lambda one: one.size):
        while portion:
            args: list[object] = [store.prefix, "LPUSH" if tail else "RPUSH", BYTES]
            args.append(store.separator)
            for one in portion:
                args += [one.number, one.list, one.text, one.epoch, "cut" if one.cut else ""]
            went, done = store.run("give_back", keys, args, timeout=timeout, insist=True)
            moved += int(went)
            portion = portion[int(done) :]
    return moved
