"""How a batch stands, as far as who looks for its members has to know: cheap, for many batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from celery_graceful.batches.keys import key_of
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.model import CALLBACKS, State
from celery_graceful.batches.producers import FIELDS, heard_of
from celery_graceful.batches.search_state import callback_member, callback_name

__all__ = ["Standing", "standing_of", "still_open"]

#: Members in one command.
CHUNK = 500

PUBLISHED = "published"


class Standing(NamedTuple):
    """How a batch stands.

    Attributes:
        state: What it is in.
        created: When it was made, seconds of the server's clock.
        moved: When it moved last, likewise.
        broker: Where its members are sent; empty if that is not known.
        callbacks: Those that are published and have not ended.
        kind: ``"batch"`` or ``"chord"``.
        parent: The batch that it is inside of.
        heard: When who sends it was last heard of; ``None`` where nobody does.
    """

    state: State
    created: float
    moved: float
    broker: str
    callbacks: tuple[str, ...]
    kind: str = "batch"
    parent: str | None = None
    heard: float | None = None


def standing_of(ledger: BatchLedger, batch: str) -> Standing | None:
    """How a batch stands; ``None`` if it is not known.

    Raises:
        StoreAway: The store does not answer.
    """
    fields = ["created", "moved", "broker", *(f"fired:{name}" for name in CALLBACKS)]
    names = [*fields, *FIELDS]
    found = ledger.store.execute("HMGET", [key_of(batch)], names, insist=True)
    known = dict(zip(names, found, strict=True))
    created, moved, broker, *fired = found[: len(fields)]
    state = known["state"]
    if state is None:
        return None
    callbacks = [name for name, is_ in zip(CALLBACKS, fired, strict=True) if is_ == PUBLISHED]
    at = int(created) / 1000, int(moved) / 1000
    return Standing(
        State(state),
        *at,
        broker or "",
        tuple(callbacks),
        known["kind"] or "batch",
        known["parent"],
        heard_of(known),
    )


def still_open(ledger: BatchLedger, batch: str, members: Sequence[str]) -> list[str]:
    """Of members and callbacks of a batch, those that have not ended.

    Raises:
        StoreAway: The store does not answer.
    """
    left: list[str] = []
    callbacks = [member for member in members if callback_name(member)]
    if callbacks:
        now = standing_of(ledger, batch)
        published = () if now is None else map(callback_member, now.callbacks)
        left += set(published).intersection(callbacks)
    rest = [member for member in members if not callback_name(member)]
    key = [key_of(batch, "pending")]
    for start in range(0, len(rest), CHUNK):
        chunk = rest[start : start + CHUNK]
        pending = ledger.store.execute("SMISMEMBER", key, chunk, insist=True)
        left += [member for member, is_ in zip(chunk, pending, strict=True) if is_]
    return left
