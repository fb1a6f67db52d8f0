"""A batch of 100,000: none of what is asked holds Redis up."""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import pytest
from celery import Celery

from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.model import CALLBACKS, Callback, End, Outcome
from celery_graceful.claims.acks import ENDS
from celery_graceful.store.app_stores import find_store
from tests.servers import RedisServer
from tests.support.patience import has_patience

MANY = 100_000

#: How often a call is measured that seems to take too long.
ROUNDS = 4

#: Members that come at once in what the calls are compared with.
CHUNK = 10_000

FILL = """
for i = ARGV[1], ARGV[2] do
  redis.call('SADD', KEYS[1], 'member-of-the-batch-with-its-number-' .. i)
  redis.call('HSET', KEYS[2], 'member-of-the-batch-with-its-number-' .. i, string.rep('x', 100))
end
"""


MOVE = """
for i = ARGV[1], ARGV[2] do
  redis.call('SMOVE', KEYS[1], KEYS[2], 'member-of-the-batch-with-its-number-' .. i)
end
"""


def member(number):
    return f"member-of-the-batch-with-its-number-{number}"


class Took(NamedTuple):
    """Milliseconds of a processor, as time says more of the machine, that one command took."""

    took: float
    what: str


class Measured(BatchLedger):
    """Measures each command of the store's."""

    def __init__(self, store, client):
        super().__init__(store)
        self.client, self.took = client, []
        for name in ("run", "execute"):
            setattr(store, name, self._measure(getattr(store, name)))
        self.overhead = min(self._since(self._cpu()) for _ in range(20))

    def fill(self):
        keys = ["graceful:batch:b:pending", "graceful:batch:b:messages"]
        self.chunks = []
        for first in range(0, MANY, CHUNK):
            before = self._cpu()
            self.client.eval(FILL, 2, *keys, first, first + CHUNK - 1)
            self.chunks.append(self._since(before))
        self.client.hset("graceful:batch:b", "total", MANY)

    def _cpu(self):
        used = self.client.info("cpu")
        return used["used_cpu_user_main_thread"] + used["used_cpu_sys_main_thread"]

    def _since(self, before):
        return (self._cpu() - before) * 1000

    def _measure(self, ask):
        def measured(what, *args, **options):
            before = self._cpu()
            try:
                return ask(what, *args, **options)
            finally:
                self.took.append(Took(self._since(before) - self.overhead, what))

        return measured


@contextmanager
def filled():
    # What Redis does now and then by itself counts as well: the less of that the better.
    options = {"hz": "1", "dynamic-hz": "no", "activerehashing": "no"}
    with RedisServer(options=options) as server, server.client() as client:
        app = Celery(uuid.uuid4().hex, broker="memory://", set_as_current=False)
        app.conf.graceful_store = server.url()
        ledger = Measured(find_store(app), client)
        callbacks = {name: Callback(name, {}) for name in CALLBACKS}
        ledger.create("b", ttl=1000, linger=30, callbacks=callbacks)
        ledger.fill()
        yield ledger


def assert_holds_nothing_up(uses):
    """Of each call the fastest of some rounds counts: the machine may stand still in one.

    None takes as long as members that come at once, a twentieth of all.
    """
    fastest = {}
    for _ in range(ROUNDS):
        with filled() as ledger:
            uses(ledger)
        for number, each in enumerate(ledger.took):
            place = number, each.what
            fastest[place] = min(each, fastest.get(place, each))
        most = min(ledger.chunks) / 2
        slow = [each for each in fastest.values() if each.took > most]
        if not slow:
            return
    pytest.fail(f"more than {most:.1f} ms: {slow}")


def end(ledger, outcome, first, last):
    due = []
    for number in range(first, last, ENDS):
        due += ledger.end([End("b", member(i), outcome) for i in range(number, number + ENDS)])
    return due


def all_end(ledger, outcome):
    ledger.sent("b")
    assert sum(1 for _ in ledger.members_pending("b")) >= MANY
    assert len(ledger.messages("b", [member(i) for i in range(2000)])) == 2000
    ledger.add("b", [(member(i), b"x" * 200) for i in range(1000)], inside=member(0))
    if outcome is Outcome.REVOKED:
        ledger.cancel("b")
    due = end(ledger, outcome, 0, 5_000)
    keys = ["graceful:batch:b:pending", f"graceful:batch:b:{outcome.value}"]
    for first in range(5_000, MANY - 5_000, 10_000):  # as those of the others do
        ledger.client.eval(MOVE, 2, *keys, first, first + 9_999)
    due += end(ledger, outcome, MANY - 5_000, MANY)
    assert ledger.status("b").pending == 0
    assert due
    for one in due:
        ledger.published(one)
        ledger.callback_ended(*one)
    assert ledger.status("b").finished


def many_batches_end_together(ledger):
    ends = []
    for number in range(40):
        parent = None
        for depth in range(3):
            name = f"batch-{number}-{depth}"
            ledger.create(name, ttl=1000, linger=30, parent=parent)
            parent = name
        ledger.add(name, [("x", b"")])
        for depth in range(3):
            ledger.sent(f"batch-{number}-{depth}")
        ends.append(End(name, "x", Outcome.SUCCEEDED))
    ledger.end(ends)
    assert all(ledger.status(f"batch-{number}-0").finished for number in range(40))


def by_force(ledger):
    ledger.complete("b")
    assert ledger.status("b").failed == MANY
    assert ledger.client.scard("graceful:batch:b:failed") >= MANY
    ledger.drop("b")
    assert ledger.client.keys("*") == []


def one_that_has_expired_is_unlinked(ledger):
    ledger.sent("b")
    ledger.client.pexpire("graceful:batch:b", 1)
    ledger.client.ping()
    while ledger.client.exists("graceful:batch:b"):
        pass
    assert ledger.stood_still(-1) == []
    assert ledger.client.keys("*") == []


USES = {
    "all succeed": partial(all_end, outcome=Outcome.SUCCEEDED),
    "all are revoked": partial(all_end, outcome=Outcome.REVOKED),
    "many batches end together": many_batches_end_together,
    "by force": by_force,
    "one that has expired is unlinked": one_that_has_expired_is_unlinked,
}


@pytest.mark.parametrize("uses", USES.values(), ids=USES.keys())
def test_nothing_is_held_up(uses, monkeypatch):
    has_patience(monkeypatch)
    assert_holds_nothing_up(uses)
