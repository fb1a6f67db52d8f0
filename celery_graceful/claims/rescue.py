"""Rescue: what a dead worker claimed goes back to where it came from.

Of all workers one looks for leases that ran out, again and again. The others try to take its place:
in a large fleet less often, for some of them do at any time, and soon enough for the leases of all
that die together with it. Taking a worker for dead is one atomic step, after which it can claim
nothing more; then its claims go back, in batches. A rescuer that dies on the way is followed by the
next one.
"""

from __future__ import annotations

import json
import logging
import random
import secrets
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from celery.utils.log import get_logger

from celery_graceful.claims.claimant import (
    FALLEN,
    WORKERS,
    begun_key,
    claims_key,
    lease_key,
    node_of,
)
from celery_graceful.claims.held_claims import Claims, Tag
from celery_graceful.claims.lease import about_key, registered, take_for_dead
from celery_graceful.claims.lease_validity import LeaseValidity
from celery_graceful.claims.moves import read
from celery_graceful.history.entry import CUT_OFF, Entry, What
from celery_graceful.history.journal import record
from celery_graceful.messages.fields import fields_of, parse
from celery_graceful.settings import Settings
from celery_graceful.store.store import StoreAway
from celery_graceful.system import native
from celery_graceful.system.log_thread import log

__all__ = ["DeadClaim", "Judge", "Rescuer", "Tell"]

logger = get_logger(__name__)

LOCK = "graceful:rescuer"

#: Shares of ``graceful_rescue_interval``: after which a worker looks again, so that a look that
#: takes its time is not late, and for which a look keeps the others away.
PUNCTUAL, LOCKED = 0.9, 0.88

#: In an interval at least so many of a fleet try to take the place of who looks; seconds for which
#: it is known how many there are, and for which it is when others may be starting too.
TRY, COUNTED, FIRST = 2, 300.0, 5.0

#: Seconds for which it is known that nobody is fallen, of whom claims may be left.
NONE_FALLEN = 5.0

#: Milliseconds for one step of a rescue, before somebody else goes on with it.
STEP = 1_000


class DeadClaim(NamedTuple):
    """A message that a worker held, and ran, when it died.

    Attributes:
        number: Of the claim.
        list: The key of the list that it came from, with its prefix.
        message: As it was in that list.
        begun: It may expire, and must not any more.
    """

    number: str
    list: str
    message: str
    begun: bool = False


#: Counts what a dead worker was running, and takes away which of it must not run again: its id,
#: what it said of itself, and those claims, to the numbers of the claims that it took.
Judge = Callable[[str, Mapping[str, Any], Sequence[DeadClaim]], set[str]]

#: Tells of a dead worker that those tasks, by their ids, go back.
Tell = Callable[[str, Sequence[str]], None]


class Rescuer:
    """Looks after all workers of one Redis.

    Args:
        claims: The broker's claims.
        settings: What the user set.
        judge: Decides about claims whose tasks killed their workers.
        lease_validity: What leases say there.
        own: The id of the worker that looks; ``None`` if it is none.
        afterwards: Called after each look, whoever looked.
        telling: A context that gives what is called with the dead worker and ids of tasks that
            it ran, before they go back.
    """

    def __init__(
        self,
        claims: Claims,
        settings: Settings,
        judge: Judge,
        lease_validity: LeaseValidity | None = None,
        own: Callable[[], str | None] = lambda: None,
        afterwards: Callable[[], None] = lambda: None,
        telling: Callable[[], AbstractContextManager[Tell]] = lambda: nullcontext(_to_nobody),
    ) -> None:
        self.claims = claims
        self.store = claims.store
        self.settings = settings
        self.judge = judge
        self.lease_validity = lease_validity or LeaseValidity(
            self.store, settings.lease_ttl, by_hand=True
        )
        self.own, self.afterwards, self.telling = own, afterwards, telling
        self._name = secrets.token_hex(8)
        self._bell, self._gone = native.Doorbell(), native.Doorbell()
        self._ended = False
        #: How many workers there are, and when that is counted again.
        self._fleet, self._count_at = 0, 0.0
        #: A look was begun, and not ended: somebody may be fallen.
        self._unsure = True
        #: Who was registered, and until when nobody else can be dead.
        self._known: list[str] = []
        self._known_until = 0.0

    def start(self) -> None:
        """Look again and again, in a real thread."""
        native.start_thread(self._run, "graceful-rescue")

    def end(self, seconds: float) -> None:
        """Look no more; wait for the end of a look for up to ``seconds``."""
        self._ended = True
        self._bell.ring()
        self._gone.wait(seconds)
        self._bell = self._gone = native.SILENT

    def _run(self) -> None:
        mine = False
        while not self._ended:
            seldom = PUNCTUAL
            try:
                # Most of a fleet find that somebody has looked, and have asked for more with that.
                free = mine or not self.store.any_exists(LOCK, age=0.0)
                mine = free and self.look() is not None
                if not mine:
                    seldom = self._seldom()
                self.afterwards()
            except StoreAway:
                pass  # said there
            except Exception:
                log(logger, logging.CRITICAL, "The rescue failed: %s", traceback.format_exc())
            self._bell.wait(self.settings.rescue_interval * max(PUNCTUAL, seldom))
        self._gone.ring()

    def _seldom(self) -> float:
        """In how many intervals this worker tries to take the place of who looks.

        Raises:
            StoreAway: Redis did not answer.
        """
        if time.monotonic() >= self._count_at:
            self._count_at = time.monotonic() + (COUNTED if self._fleet else FIRST)
            self._fleet = int(self.store.execute("SCARD", [WORKERS]))
        settings = self.settings
        # Those whose last heartbeat came just before the last look: their leases run out no sooner.
        least = settings.lease_ttl - settings.heartbeat_interval
        most = least / settings.rescue_interval - LOCKED
        often = min(self._fleet / TRY, most)
        return often if often <= 1.0 else random.uniform(0.9, 1.0) * often  # not all at once

    def look(self) -> int | None:
        """Rescue what there is to rescue, unless somebody else does.

        Returns:
            How many claims went back; ``None`` if somebody else is at it.

        Raises:
            StoreAway: Redis did not answer.
        """
        # Kept until it expires: one look in an interval is enough for all.
        ttl = int(self.settings.rescue_interval * LOCKED * 1000)
        if not self.store.execute("SET", [LOCK], [self._name, "NX", "PX", ttl]):
            return None
        moved = self._rescue_all()
        if moved:  # that has kept it for longer
            self.store.execute("PEXPIRE", [LOCK], [ttl // 2])
        return moved

    def _rescue_all(self) -> int:
        # In this order: whom a failover has made look dead is not judged by what was known before.
        gone = self._gone_workers()
        if not (gone or self._unsure or self.store.any_exists(FALLEN, age=NONE_FALLEN)):
            return 0
        self._unsure = True
        if not self.lease_validity.seconds():
            for worker in gone:
                if take_for_dead(self.store, self.lease_validity, worker, self.own()) is None:
                    self.lease_validity.meet_again()
        moved = sum(self._rescue(w) for w in sorted(self.store.execute("SMEMBERS", [FALLEN])))
        self._unsure = False
        return moved

    def _gone_workers(self) -> list[str]:
        """Workers that have registered, and whose lease ran out."""
        now = time.monotonic()
        if now < self._known_until and all(
            self.store.execute("MGET", [lease_key(worker) for worker in self._known])
        ):
            return []  # and who has registered since has a lease that runs
        found = registered(self.store)
        self._known = [worker for worker, _ in found]
        self._known_until = now + self.settings.lease_ttl / 2 if found else 0.0
        return [worker for worker, beat in found if beat is None]

    def _rescue(self, worker: str) -> int:
        began = time.monotonic()
        moved, cut_off = self._give_back(worker)
        took = time.monotonic() - began
        if cut_off and moved:
            cut_off += ": killed before its grace period was over?"
        text = "Rescued what %s held: %d, in %.2f s%s"
        log(logger, logging.WARNING, text, worker, moved, took, cut_off if moved else "")
        return moved

    def _give_back(self, worker: str) -> tuple[int, str]:
        """How many went back, and what to say of a worker that was stopping.

        In a few steps, however many tasks ran: Redis may be far away, and they all wait.
        """
        keys = [claims_key(worker), begun_key(worker), about_key(worker)]
        found, begun, known = self.store.run("left", keys, [])
        numbers, about = sorted(map(int, found)), json.loads(known or "{}")
        has_begun, stops = set(begun), bool(about.get("stops"))
        running = self._running(worker, [n for n in numbers if str(n) in has_begun], about)
        with self.telling() if running else nullcontext(_to_nobody) as tell:
            # What a stop has given up, and could not give back, has died of nothing.
            taken = set() if stops else self.judge(worker, about, running)
            left = (_fields(claim.message) for claim in running if claim.number not in taken)
            ran = [fields for fields in left if fields.get("id")]
            tell(worker, [str(fields["id"]) for fields in ran])
        cut_off = f"; {CUT_OFF}" if stops else ""
        self.claims.begun.update(f"{worker}/{claim.number}" for claim in running if claim.begun)
        back = [number for number in numbers if str(number) not in taken]
        tags = [Tag(worker, number) for number in back]
        moved = self.claims.give_back(
            tags, on_step=lambda: self.store.execute("PEXPIRE", [LOCK], [STEP])
        )
        if moved:
            self._enter(worker, ran, moved, cut_off)
        self.store.run("rescued", [*keys, FALLEN], [worker])
        return moved, cut_off

    def _enter(self, worker: str, ran: Sequence[dict[str, Any]], moved: int, cut_off: str) -> None:
        """Into the history: those that ran by their names, the others by their number."""
        node, own = node_of(worker), self.own()
        why = (f"given back by {node_of(own)}" if own else "given back by hand") + cut_off
        entries = [
            Entry(What.RESCUED, str(f["id"]), str(f.get("task", "")), node, why) for f in ran
        ]
        if moved > len(ran):
            others = moved - len(ran)
            entries.append(Entry(What.RESCUED, worker=node, reason=why, count=others))
        record(self.store, self.settings, *entries, at_once=True)

    def _running(self, worker: str, ran: list[int], about: dict[str, Any]) -> list[DeadClaim]:
        """What the worker was running: claims that it has noted to have begun."""
        if (
            about.get("server", self.lease_validity.server) != self.lease_validity.server
            or self.lease_validity.seconds()
        ):
            return []  # it was not heard since a failover: that is no reason to say that it died
        running: list[DeadClaim] = []
        for found in read(self.store, worker, ran, whole=True):
            for number, entry, *_ in found:
                if entry is not None:
                    name, _, text = entry.partition("\0")
                    fields = _fields(text)
                    # What cannot be read here may expire.
                    expires = not fields or bool(fields.get("expires"))
                    running.append(DeadClaim(str(number), name, text, expires))
        return running


def _to_nobody(worker: str, ids: Sequence[str]) -> None:
    pass


def _fields(text: str) -> dict[str, Any]:
    """Of a message; none if it is none of Celery's."""
    try:
        return fields_of(parse(text))
    except Exception:  # what can be in a queue can raise anything
        return {}
