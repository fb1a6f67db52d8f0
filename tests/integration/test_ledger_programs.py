"""Random programs of batches, against a model in plain Python, with scripts that break off."""

from __future__ import annotations

import itertools
import os
import uuid
from collections import Counter
from contextlib import suppress
from functools import partial

import pytest
from celery import Celery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_graceful import BatchFinished, UnknownBatch
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.model import Callback, Due, End, Outcome
from celery_graceful.store.app_stores import find_store
from celery_graceful.store.store import StoreRefused
from tests.support.ledger_model import NAMES, Book, Model

OUTCOMES = [outcome.value for outcome in Outcome]
SETS = ("pending", "succeeded", "failed", "revoked")
LIST, BELL = "graceful:list", "graceful:bell"

#: A few seconds' worth; thousands for who works on the scripts.
EXAMPLES = int(os.environ.get("LEDGER_EXAMPLES", "30"))

#: Each command is counted, and at that number the script breaks off.
BREAKS = """
local left = %d
local function _call(...)
  left = left - 1
  if left == 0 then
    return error('broken off')
  end
  return redis.call(...)
end
"""

NUMBER = st.integers(0, 60)
STEPS = {
    "create": 5,
    "add": 8,
    "sending": 1,
    "sent": 8,
    "end": 18,
    "publish": 5,
    "run": 5,
    "callback_ended": 6,
    "again": 2,
    "cancel": 1,
    "complete": 1,
    "drop": 1,
    "expire": 1,
    "fire": 1,
    "look": 1,
}
STEP = st.tuples(
    st.sampled_from([name for name, weight in STEPS.items() for _ in range(weight)]),
    st.tuples(NUMBER, NUMBER, NUMBER, NUMBER),
    # Whether its script breaks off first, and at which command.
    st.one_of(st.none(), st.none(), st.none(), st.integers(1, 40)),
)


class Programs:
    """Runs one program: against the scripts, and against the model."""

    def __init__(self, store, client, *, one_step, retries):
        self.store, self.client, self.ledger = store, client, BatchLedger(store)
        self.model = Model()
        #: A message goes into its list in the step that takes it out of the outbox.
        self.one_step = one_step
        #: What broke off is asked for again; else nobody knows what was done of it.
        self.retries = retries
        self.numbers = itertools.count()
        self.queue, self.running, self.ran = [], [], Counter()
        self.breaks_at = None
        #: Dropped, or expired.
        self.gone = []
        #: At their end once: not all of their sets are kept, even if a callback is sent by hand.
        self.cleared = set()

    # -- steps ---------------------------------------------------------------------------

    def step(self, name, numbers, breaks_at):
        if self.model.books or name == "create":
            self.breaks_at = breaks_at
            getattr(self, name)(*numbers)
            self.model.settle()
            self.check()

    def ask(self, method, *args, **options):
        """Of the ledger, with a script that breaks off first."""
        if self.breaks_at:
            with Broken(self.store, self.breaks_at), suppress(StoreRefused):
                return getattr(self.ledger, method)(*args, **options)
            if not self.retries:
                raise Abandoned
        return getattr(self.ledger, method)(*args, **options)

    def pick(self, number, some=None):
        some = list(self.model.books if some is None else some)
        return some[number % len(some)] if some else None

    def inside(self, book, number):
        return self.pick(number, [None, *book.members, *(f"callback:{name}" for name in NAMES)])

    def create(self, which, parent, inside, callbacks):
        if len(self.model.books) == 5:
            return
        name = f"b{next(self.numbers)}"
        has = tuple(one for bit, one in enumerate(NAMES) if not callbacks >> bit & 1)
        made = {one: Callback(f"{name}:{one}", {}) for one in has}
        above = self.pick(parent) if which % 3 else None
        into = self.model.books[above] if above else None
        by = self.inside(into, inside) if into else None
        options = {"callbacks": made, "parent": above, "inside": by}
        ttl, linger = 1000 + which, 30 + which
        if into and not into.takes(by):
            with pytest.raises(BatchFinished):
                self.ask("create", name, ttl=ttl, linger=linger, **options)
            return
        self.ask("create", name, ttl=ttl, linger=linger, **options)
        self.model.books[name] = Book(above, has)
        if into:
            into.members[name] = "pending"
            into.kids.add(name)

    def add(self, which, count, first, inside):
        name = self.pick(which)
        book = self.model.books[name]
        by = self.inside(book, inside)
        members = [f"m{(first + i) % 8}" for i in range(count % 4 + 1)]
        packed = [(member, b"\xff" + member.encode()) for member in members]
        if not book.takes(by):
            with pytest.raises(BatchFinished):
                self.ask("add", name, packed, inside=by)
            return
        self.ask("add", name, packed, inside=by)
        for member in members:
            book.members.setdefault(member, "pending")

    def sending(self, which, *_):
        name = self.pick(which)
        book = self.model.books[name]
        if book.state not in ("open", "sending"):
            with pytest.raises(BatchFinished):
                self.ask("begin_sending", name)
            return
        self.ask("begin_sending", name)
        book.state = "sending"

    def sent(self, which, *_):
        name = self.pick(which)
        self.ask("sent", name)
        book = self.model.books[name]
        if book.state in ("open", "sending"):
            book.state = "sent"

    def end(self, which, member, outcome, more):
        ends = []
        for i in range(more % 3 + 1):
            name = self.pick(which + i, [*self.model.books, *self.gone])
            book = self.model.books.get(name)
            members = {f"m{j}" for j in range(9)} | set(book.members if book else ())
            one = self.pick(member + i, sorted(members - self.model.books.keys()))
            how = OUTCOMES[(outcome + i) % 4 % 3]
            claim = None
            if (outcome + i) % 2:
                claim = ("w", next(self.numbers))
                if outcome % 11:
                    self.client.hset("graceful:claims:w", str(claim[1]), "message")
            ends.append(End(name, one, Outcome(how), claim))
        # Before, as those that are asked for again have to see them.
        counts = [one for one in ends if one.claim is None or outcome % 11]
        self.ask("end", ends)
        for one in counts:
            if one.batch in self.model.books:
                self.model.books[one.batch].end(one.member, one.outcome.value)
                self.model.books[one.batch].kids.discard(one.member)
        assert not self.client.exists("graceful:claims:w")

    def publish(self, number, *_):
        """Another one sends what is due; it may die before it says so."""
        due = self.pick(number, sorted(self.ledger.outbox()))
        if due is None:
            return
        copy = f"{due}/{next(self.numbers)}"
        book = self.model.books.get(due.batch)
        if self.one_step:
            pushed = self.ask("published", due, list_key=LIST, bell=BELL, message=copy)
            assert pushed == (book is not None) or self.breaks_at
        else:
            self.queue.append(copy)
            if number % 4:
                self.ask("published", due)
            else:
                return
        if book:
            book.fired[due.name] = "published"

    def run(self, number, *_):
        if self.one_step:
            self.queue += self.client.lrange(LIST, 0, -1)
            self.client.delete(LIST)
        copy = self.pick(number, self.queue)
        if copy is None:
            return
        due = Due.parse(copy.partition("/")[0])
        may_run = self.ask("may_run", *due, copy)
        self.queue.remove(copy)
        if may_run:
            self.ran[str(due)] += 1
            self.running.append((due, copy))

    def callback_ended(self, number, *_):
        found = self.pick(number, self.running)
        if found is None:
            return
        due, copy = found
        if number % 5 == 0:  # it is delivered once more
            assert self.ledger.may_run(*due, copy)
        if number % 7 == 0:  # in quarantine, and sent again
            self.ask("callback_ended", *due, kept=True)
            assert due.batch not in self.model.books or self.ledger.may_run(*due, copy)
            if due.batch in self.model.books:
                self.model.books[due.batch].fired[due.name] = "ended"
            return
        self.ask("callback_ended", *due)
        self.running.remove(found)
        if due.batch in self.model.books:
            self.model.books[due.batch].fired[due.name] = "ended"
            assert not self.ledger.may_run(*due, copy)

    def again(self, which, number, *_):
        """An end of a callback is noted again."""
        name = self.pick(which)
        for callback, fired in self.model.books[name].fired.items():
            if fired == "ended":
                self.ask("callback_ended", name, callback)

    def cancel(self, which, *_):
        name = self.pick(which)
        self.ask("cancel", name)
        self.model.cancel(name)

    def complete(self, which, *_):
        name = self.pick(which)
        # Of one that broke off, what is left is less: the rest ends by the second call.
        if not self.breaks_at or "published" not in self.model.books[name].fired.values():
            self.ask("complete", name)
            self.model.complete(name)

    def drop(self, which, *_):
        name = self.pick(which)
        with suppress(*[UnknownBatch] if self.breaks_at else []):
            self.ask("drop", name)
        self.model.drop(name)
        self.gone.append(name)

    def expire(self, which, *_):
        name = self.pick(which)
        if not self.model.books[name].finished:
            self.client.delete(f"graceful:batch:{name}")
            del self.model.books[name]
            self.gone.append(name)
            assert name not in self.ledger.stood_still(-1)

    def fire(self, which, number, *_):
        name = self.pick(which)
        book = self.model.books[name]
        callback = self.pick(number, book.callbacks)
        if callback and all(due != (name, callback) for due, _ in self.running):
            self.ask("fire", name, callback)
            if book.fired.get(callback) != "ended":
                book.fired[callback] = "due"

    def look(self, which, *_):
        self.ask("look", self.pick(which))

    # -- what has to be so -----------------------------------------------------------------

    def check(self):
        for name, book in self.model.books.items():
            status = self.ledger.status(name)
            how = Counter(book.members.values())
            assert [getattr(status, one) for one in SETS] == [how[one] for one in SETS], name
            assert status.state.value == book.shown(), name
            stands = status.callbacks.items()
            assert {k: v for k, v in stands if v not in ("waiting", "never")} == book.fired
            assert bool(status.finished) == book.finished
            assert set(self.ledger.kids(name)) == book.kids
            if book.finished and (book.is_clean() or book.state == "cancelled"):
                self.cleared.add(name)
            if name not in self.cleared:
                for one in SETS:
                    inside = self.client.smembers(f"graceful:batch:{name}:{one}")
                    assert inside == {m for m, has in book.members.items() if has == one}
            kept = {m for m, has in book.members.items() if has != "succeeded"} - {
                m for m in book.members if m.startswith("b")
            }
            if not book.finished and name not in self.cleared:
                found = self.ledger.messages(name, list(book.members))
                assert found == {member: b"\xff" + member.encode() for member in kept}
        waiting = {
            f"{name}:{one}"
            for name, book in self.model.books.items()
            for one, fired in book.fired.items()
            if fired == "due"
        }
        assert {str(due) for due in self.ledger.outbox()} == waiting
        unfinished = {name for name, book in self.model.books.items() if not book.finished}
        assert set(self.ledger.stood_still(-1)) == unfinished
        self.check_lives()

    def check_lives(self):
        keys = self.client.keys("*")
        with self.client.pipeline() as at_once:
            for key in keys:
                at_once.pttl(key)
            lives = dict(zip(keys, at_once.execute(), strict=True))
        lives.pop(LIST, None)
        if lives.get(BELL) == -2:  # it has run out since
            del lives[BELL]
        assert min(lives.values(), default=1) > 0, lives
        names = {key.split(":")[2] for key in lives if key.startswith("graceful:batch:")}
        assert names == self.model.books.keys()
        for name, book in self.model.books.items():
            parent = self.model.books.get(book.parent or "")
            if parent and parent.state != "cancelled":
                above = lives[f"graceful:batch:{book.parent}"]
                assert above > lives[f"graceful:batch:{name}"]

    def check_safety(self):
        """What holds also where nobody knows what was done."""
        for name in self.names():
            sets = [self.client.smembers(f"graceful:batch:{name}:{one}") for one in SETS]
            assert sum(map(len, sets)) == len(set().union(*sets))
            status = self.ledger.status(name)
            assert min(getattr(status, one) for one in SETS) >= 0
            assert status.pending == len(sets[0])
            if status.finished or "on_success" in self.ran:
                assert not status.finished or not status.pending

    def names(self):
        keys = self.client.keys("graceful:batch:*")
        return sorted({key.split(":")[2] for key in keys if key.count(":") == 2})

    def drain(self):
        """All that waits ends: then all has ended, and each callback that is due has run once."""
        self.breaks_at = None
        for _ in range(8):
            for name in self.names():
                self.ledger.look(name)
                if self.ledger.state(name) != "cancelled":
                    self.ledger.sent(name)
                for member in list(self.ledger.members_pending(name)):
                    if self.ledger.state(member) is None:
                        self.ledger.end([End(name, member, Outcome.SUCCEEDED)])
            for due in self.ledger.outbox():
                self.publish_now(due)
            while self.queue or self.client.exists(LIST):
                self.run(0)
            while self.running:
                due, _ = self.running.pop()
                self.ledger.callback_ended(*due)
        for name in self.names():
            status = self.ledger.status(name)
            assert status.finished
            assert status.pending == status.kids == 0
            fired = {one for one, state in status.callbacks.items() if state == "ended"}
            assert fired == {one for one in status.callbacks if self.ran[f"{name}:{one}"]}
            if status.succeeded == status.total and status.state.value == "done":
                may = {one for one, state in status.callbacks.items() if state != "never"}
                assert fired >= {"on_success", "on_complete"} & may
        assert max(self.ran.values(), default=1) == 1, self.ran
        assert self.ledger.outbox() == self.ledger.stood_still(-1) == []

    def publish_now(self, due):
        copy = f"{due}/{next(self.numbers)}"
        if self.one_step:
            self.ledger.published(due, list_key=LIST, message=copy)
        else:
            self.queue.append(copy)
            self.ledger.published(due)


class Abandoned(Exception):
    """What broke off is not asked for again."""


class Broken:
    """The scripts of a store break off at a command, if they get so far."""

    def __init__(self, store, at):
        self.store, self.at = store, at

    def __enter__(self):
        def script(name):
            _, text = type(self.store)._script(self.store, name)
            return "0" * 40, BREAKS % self.at + text.replace("redis.call(", "_call(")

        self.store._script = script
        self.store.run = partial(type(self.store).run, self.store, quiet=True)
        return self

    def __exit__(self, *exc):
        del self.store._script, self.store.run


@pytest.fixture
def store(redis_db):
    app = Celery(uuid.uuid4().hex, broker="memory://", set_as_current=False)
    app.conf.graceful_store = redis_db.url
    return find_store(app)


@settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
@given(
    steps=st.lists(STEP, min_size=10, max_size=40), one_step=st.booleans(), retries=st.booleans()
)
def test_programs(store, redis_db, steps, one_step, retries):
    redis_db.client.flushdb()
    programs = Programs(store, redis_db.client, one_step=one_step, retries=retries)
    for name, numbers, breaks_at in steps:
        try:
            programs.step(name, numbers, breaks_at)
        except Abandoned:
            programs.check_safety()
            break
    programs.drain()
