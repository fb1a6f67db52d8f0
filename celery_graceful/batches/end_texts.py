"""The ends of members as scripts read them (``batch_end.lua``)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from celery_graceful.batches.member_part import CallbackEnd, Fields, fields_of
from celery_graceful.batches.model import Outcome
from celery_graceful.claims.acks import ENDS

__all__ = ["AnyEnd", "end_texts", "first_text"]

#: Batches whose ends are in one script.
BATCHES = 20

#: An ``End``, its fields, or the mark of a member that has succeeded.
AnyEnd = Fields | str

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
    ends: Sequence[Any], workers: Sequence[str], numbers: Sequence[int | str]
) -> tuple[str, int]:
    """A text of the first ends, and of how many: as far as they are those of members.

    Args:
        ends: One, and up to ``ENDS``.
        workers: Of their claims; ``""`` where there are none.
        numbers: Of those.
    """
    text = _text_of_successes(ends, workers, numbers)
    if text is not None:  # most often
        return text, len(ends)
    alike: dict[tuple[str, str, str], tuple[list[str], list[str]]] = {}
    batches: set[str] = set()
    count = 0
    for end, worker, number in zip(ends, workers, numbers, strict=True):
        if isinstance(end, CallbackEnd):
            break
        batch, member, outcome, _ = fields_of(end)
        batches.add(batch)
        if len(batches) > BATCHES:
            break
        members, claims = alike.setdefault((batch, outcome, worker), ([], []))
        members.append(member)
        claims.append(str(number))
        count += 1
    return _encode([(*key, *both) for key, both in alike.items()]), count


def _text_of_successes(
    marks: Sequence[Any], workers: Sequence[str], numbers: Sequence[int | str]
) -> str | None:
    """The same, of members of one batch that have succeeded: ``None`` if they are not all that."""
    try:
        marked = len('","'.join(marks))
    except TypeError:  # some have ended otherwise
        return None
    # The encoder takes as long for these as all else about them: most need nothing of it.
    prefix, worker, many = marks[0].partition("/")[0] + "/", workers[0], len(marks)
    names = '","'.join([mark.removeprefix(prefix) for mark in marks])
    if (
        workers.count(worker) < many
        or marked - len(names) < many * len(prefix)
        or names.count('"') > 2 * (many - 1)
        or "\\" in names
        or not names.isprintable()
    ):
        return None
    key = _encode((prefix[:-1], Outcome.SUCCEEDED, worker))[1:-1]
    claims = '","'.join(map(str, numbers))
    return f'[[{key},["{names}"],["{claims}"]]]'
