"""The ends of members as scripts read them (``batch_end.lua``)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from celery_graceful.claims.acks import ENDS

__all__ = ["AnyEnd", "end_texts", "first_text"]

#: Batches whose ends are in one script.
BATCHES = 20

#: An ``End``, or its fields.
AnyEnd = tuple[str, str, str, tuple[str, int] | None]

# As it is: what is no text to JSON is bytes to Redis.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def end_texts(ends: Sequence[AnyEnd], claims: Sequence[tuple[str, int] | None]) -> Iterator[str]:
    """A text for each script. In which order ends come makes no difference to it.

    Args:
        ends: The ends.
        claims: Of each, in place of those that they name.
    """
    workers = [claim[0] if claim else "" for claim in claims]
    numbers = [claim[1] if claim else "" for claim in claims]
    done = 0
    while done < len(ends):
        some = slice(done, done + ENDS)
        text, count = first_text(ends[some], workers[some], numbers[some])
        yield text
        done += count


def first_text(
    ends: Sequence[tuple[Any, ...]], workers: Sequence[str], numbers: Sequence[int | str]
) -> tuple[str, int]:
    """A text of the first ends, and of how many: as far as they are those of members.

    Args:
        ends: Up to ``ENDS``.
        workers: Of their claims; ``""`` where there are none.
        numbers: Of those.
    """
    if set(map(len, ends)) == {4}:
        batch_ids, member_ids, outcomes, _ = zip(*ends, strict=True)
        if len(set(batch_ids)) == len(set(outcomes)) == len(set(workers)) == 1:  # most often
            key = batch_ids[0], outcomes[0], workers[0]
            return _encode([(*key, member_ids, [*map(str, numbers)])]), len(ends)
    alike: dict[tuple[str, str, str], tuple[list[str], list[str]]] = {}
    batches: set[str] = set()
    count = 0
    for end, worker, number in zip(ends, workers, numbers, strict=True):
        if len(end) != 4:  # of a callback
            break
        batch, member, outcome, _ = end
        batches.add(batch)
        if len(batches) > BATCHES:
            break
        members, claims = alike.setdefault((batch, outcome, worker), ([], []))
        members.append(member)
        claims.append(str(number))
        count += 1
    return _encode([(*key, *both) for key, both in alike.items()]), count
