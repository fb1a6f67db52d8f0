"""Chords whose processes are killed before a command that they send to Redis: the body runs, once.

A few of the commands; CHORD_KILLS=all takes each, a minute for a chord.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import chain, chord, group
from celery.app.task import Context
from celery.result import AsyncResult
from redis.connection import AbstractConnection

from celery_graceful.batches.brief_status import standing_of
from celery_graceful.batches.findings import Named
from celery_graceful.batches.marks import CALLBACK
from celery_graceful.batches.model import State
from celery_graceful.batches.repair import Repair
from tests.conftest import RedisDB
from tests.support.chords import ByHand, Killed, by_hand

#: What is sent, and what its body is given. Tasks return their own argument.
SHAPES: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "tasks": (lambda add: chord([add.s(1), add.s(2)], add.s()), [1, 2]),
    "a chain in the header": (
        lambda add: chord([chain(add.s(1), add.s()), add.s(2)], add.s()),
        [1, 2],
    ),
    "a group in a chain of the header": (
        lambda add: chord([add.s(1), chain(add.s(2), group(add.s(), add.s()))], add.s()),
        [1, [2, 2]],
    ),
    "a chord in the header": (
        lambda add: chord([add.s(1), chord([add.s(2), add.s(3)], add.s())], add.s()),
        [1, [2, 3]],
    ),
    "a chain as the body": (
        lambda add: chord([add.s(1), add.s(2)], chain(add.s(), add.s())),
        [1, 2],
    ),
}

#: Celery's own chord in the header: who sends its body is not looked after until it is missing.
MAY_BE_MISSING = "a chord in the header"

#: Each how many commands somebody is killed.
STEP = 1 if os.environ.get("CHORD_KILLS") == "all" else 7


class Kills:
    """Who sends the n-th command is killed before it, where that is possible."""

    def __init__(self, at: int = 0) -> None:
        self.at, self.count = at, 0
        self.possible = self.dead = False
        #: Members that were found missing.
        self.missing = 0

    def before_a_command(self) -> None:
        self.count += self.possible and not self.dead
        self.dead |= self.possible and self.count == self.at
        if self.dead:
            raise Killed

    @contextmanager
    def may_happen(self) -> Iterator[None]:
        self.possible = True
        try:
            yield
        finally:
            self.possible = False


def worked_off(db: RedisDB, sig: Callable[[Any], Any], kills: Kills) -> list[Any]:
    """What the body was given each time that it ran.

    A process works it off; if it is killed another one goes on, as messages that are rescued do.
    """
    given: list[Any] = []
    held: list[Context] = []
    chord_id = ""
    for _ in range(2):
        kills.dead = False
        with by_hand(db, tracked=True) as one:
            if not chord_id:
                one.apply(sig(one.add))
                (chord_id,) = one.client.zrange("graceful:batches", 0, -1)
            try:
                while one.status(chord_id).state is not State.DONE:
                    work(one, held, given, kills)
                    if not (held or one.client.llen("celery") or one.ledger.outbox()):
                        find_missing(one, chord_id, kills)
                work(one, held, given, kills)  # a second copy of the body is left out
            except Killed:
                continue
            assert one.ledger.outbox() == []
            return given
    raise AssertionError("it was killed once")


def work(one: ByHand, held: list[Context], given: list[Any], kills: Kills) -> None:
    """All that there is, and then the outbox. What is not acknowledged stays."""
    held[:0] = one.take()  # what was held by a process that was killed is rescued a while later
    while held:
        context = held[0]
        if hasattr(context, CALLBACK):
            if one.may_run(context):
                given.append(context.args[0])
                one.ends(context, 0)
        else:
            try:
                with kills.may_happen():
                    one.ends(context, context.args[0])
            except Killed:
                one.comes_again(context)
                raise
        del held[0]
    with kills.may_happen():
        one.publish(one.ledger.outbox())


def find_missing(one: ByHand, chord_id: str, kills: Kills) -> None:
    """What the look at batches that stand still comes to."""
    standing = standing_of(one.ledger, chord_id)
    assert standing is not None
    if standing.state is State.DONE:
        return
    missing = [Named(member) for member in one.ledger.members_pending(chord_id)]
    assert missing, one.status(chord_id)
    assert not kills.missing, one.status(chord_id)
    kills.missing = len(missing)
    Repair(one.app, one.ledger, one.publish).mend(chord_id, standing, missing, lambda name: True)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("shape", SHAPES)
def test_killed_anywhere(shape: str, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch) -> None:
    sig, expected = SHAPES[shape]
    send = AbstractConnection.send_packed_command
    kills = Kills()

    def sends(self: Any, *args: Any, **kwargs: Any) -> Any:
        kills.before_a_command()
        return send(self, *args, **kwargs)

    monkeypatch.setattr(AbstractConnection, "send_packed_command", sends)
    monkeypatch.delattr(AsyncResult, "__del__")  # who is killed finalizes nothing
    for _ in range(2):  # once more: the server knows all scripts then
        kills = Kills()
        assert worked_off(redis_db, sig, kills) == [expected]
        redis_db.client.flushdb()
    for at in range(1, kills.count + 1, STEP):
        kills = Kills(at)
        assert worked_off(redis_db, sig, kills) == [expected], f"killed before command {at}"
        assert not kills.missing or shape == MAY_BE_MISSING, f"killed before command {at}"
        redis_db.client.flushdb()
