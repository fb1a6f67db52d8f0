"""Who listens for messages that nobody rings for: two workers for all that wait for some queues.

Producers without this package put a message into its list and ring no bell. So two of the workers
are *ears* of these queues, in case one is killed or frozen: Redis tells them of each change of the
lists (``store/tracking``), and they ring where something waits and no ring does. The others wait on
the bell, for long, and ask now and then whether there are two, the more seldom the more of them
there are. Ears also mend rings that were lost, as by a worker that was stopped or killed with one
in its hand: where a ring has been answered and something still waits they ring again, more and
more; and every three seconds they look, told or not. Too many ears do no harm. Where Redis does not
tell, there is none, and each worker looks for itself. Keys:

``graceful:ear:<queues>:<place>``
    String: who is an ear of these queues, and how many workers wait for them. It expires.
``graceful:wake:<name>``
    List that one worker waits on beside its bells, and only itself pushes to.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import secrets
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from celery.utils.log import get_logger

from celery_graceful.claims.claimant import WORKERS, lease_key
from celery_graceful.store.store import Store, StoreAway, StoreRefused
from celery_graceful.store.tracking import Tracking
from celery_graceful.system import native
from celery_graceful.system.log_thread import log

__all__ = ["HAND_OVER", "LONG", "SHORT", "Ear"]

logger = get_logger(__name__)

#: Seconds that an idle worker waits for a bell while somebody listens for it, at most; and where
#: it looks for itself.
LONG, SHORT = 20.0, 1.0

#: How many ears.
EARS = 2

#: Seconds between looks of an ear, told or not; for which nobody else takes its place.
LOOK, TERM = 3.0, 5.0

#: Seconds between two looks at least; and at most, while it is told all the time and others are
#: faster.
SOON, BUSY = 0.005, 0.1

#: Seconds in which a ring is answered: somebody has come, and has taken what waits.
ANSWERED = 0.05

#: Rings at most, if those before were answered and something waits all the same: by workers that
#: are frozen, or on machines that are gone.
MANY = 64

#: Seconds between questions of the others whether there are ears: one a second of all of them,
#: within these limits. In a fleet it is enough what a question for something else has brought along
#: (``store/presence``), for so long at first and at most.
OFTEN, SELDOM, FIRST, ENOUGH = 2.0, 20.0, 30.0, 120.0

#: Seconds until an ear whose connections were lost makes others.
AGAIN = 0.2

#: Seconds until it counts the others, for the first time and then.
COUNT_FIRST, COUNT = 5.0, 60.0

#: Milliseconds until a ring expires.
RINGS_TTL = 10_000

#: A ring of an ear that leaves: somebody has to follow.
HAND_OVER = "ear"


class _Queues(NamedTuple):
    """What is listened to: the keys of as many bells, then those of the lists, with prefixes."""

    bells: int
    keys: list[str]

    @property
    def digest(self) -> str:
        """Is the same for all that wait for the same lists."""
        return hashlib.sha1("\0".join(sorted(self.keys)).encode()).hexdigest()[:12]


class Ear:
    """One worker's part in listening; a thread that starts when it waits for the first time.

    Args:
        store: The Redis that is the broker.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._name = store, secrets.token_hex(8)
        #: The list that wakes the channel.
        self.wake_key = f"graceful:wake:{self._name}"
        self._bell, self._gone = native.Doorbell(), native.Doorbell()
        self._started = self._ended = self._refused = False
        #: The channel may wait for something else than it should.
        self._to_wake = False
        #: The names of the queues that it waits for, and what they are to us.
        self._names: frozenset[str] = frozenset()
        self._queues: _Queues | None = None
        #: For what somebody listens, and until when that is known.
        self._heard: tuple[_Queues | None, float] = None, 0.0
        #: How often it has to ask whether somebody does; for how long, and until when, not who.
        self._often, self._enough, self._enough_until = OFTEN, FIRST, 0.0
        #: What others may know of it, in the heartbeat.
        self.digest = ""

    # -- for the channel, in the loop ------------------------------------------------

    def seconds(self, names: frozenset[str], keys: Callable[[], list[str]]) -> float:
        """How long it may wait for the bells of these queues.

        Args:
            names: Of the queues.
            keys: Makes those of the bells, and then of the lists, priority by priority.
        """
        if names != self._names:
            self._names, self._queues = names, _Queues(len(names), keys())
            self.ask()
        queues, until = self._heard
        return LONG if queues is self._queues and time.monotonic() < until else SHORT

    def ask(self) -> None:
        """Somebody has to listen now: ask who does."""
        self._enough_until = 0.0
        if not self._started and not self._ended:
            self._started = True
            native.start_thread(self._run, "graceful-ear")
        self._bell.ring()

    def wake(self) -> None:
        """What the worker waits for has changed, while it waits: end that wait."""
        if self._started:
            self._to_wake = True
            self._bell.ring()

    def end(self, seconds: float) -> None:
        """Listen no more; wait for that for up to ``seconds``."""
        self._ended = True
        if self._started:
            self._bell.ring()
            self._gone.wait(seconds)
        self._bell = self._gone = native.SILENT

    # -- in its thread ---------------------------------------------------------------

    def _run(self) -> None:
        while not self._ended:
            pause: float | None
            try:
                pause = self._turn()
            except StoreRefused:
                pause = SELDOM  # said there, as in the next case
            except StoreAway:
                pause = SHORT  # until then each looks for itself
            except Exception:
                pause = SELDOM
                log(logger, logging.CRITICAL, "Could not listen: %s", traceback.format_exc())
            if not self._ended:
                self._bell.wait(pause)
        self._gone.ring()

    def _turn(self) -> float | None:
        """Listen, or see who does; seconds until somebody has to ask again."""
        if self._to_wake:
            self._wake_channel()
        queues = self._queues
        if queues is None or self._refused:
            return None
        self.digest = queues.digest
        keys = [f"graceful:ear:{self.digest}:{place}" for place in range(EARS)]
        now = time.monotonic()
        if now < self._enough_until and all(
            self._store.any_exists(key, age=self._often - 1) for key in keys
        ):
            return self._somebody_does(queues)
        ears = [str(ear or "").partition(" ") for ear in self._ask("MGET", keys)]
        for key, (name, _, _) in zip(keys, ears, strict=True):
            if name == self._name:  # it lost its connections
                return self._be_ear(queues, key)
        for key, (name, _, _) in zip(keys, ears, strict=True):
            terms = (f"{self._name} 1", "NX", "PX", int(TERM * 1000))
            if not name and self._ask("SET", [key], terms):
                return self._be_ear(queues, key)
        self._often = max(OFTEN, min(max(int(alike or 1) for _, _, alike in ears), SELDOM))
        if self._often > OFTEN:
            self._enough_until = now + self._enough
            self._enough = min(2 * self._enough, ENOUGH)
        return self._somebody_does(queues)

    def _somebody_does(self, queues: _Queues) -> float:
        """Seconds until it is asked again."""
        pause = random.uniform(0.8, 1.0) * self._often  # not all at once
        self._heard = queues, time.monotonic() + pause + TERM
        return pause

    def _ask(self, command: str, keys: list[str], args: tuple[Any, ...] = ()) -> Any:
        """Ask, also when the store was away a moment ago: the queues may be back by now."""
        return self._store.execute(command, keys, args, insist=True)

    def _wake_channel(self) -> None:
        self._to_wake = False  # before: more may change meanwhile
        try:
            self._store.run("ring", [self.wake_key], ["", RINGS_TTL], insist=True)
        except StoreAway:
            self._to_wake = True
            raise

    def _bare(self, keys: list[str]) -> list[str]:
        return [key.removeprefix(self._store.prefix) for key in keys]

    def _be_ear(self, queues: _Queues, key: str) -> float:
        """Listen until the worker ends, waits for something else, or somebody else listens.

        Returns:
            Seconds until it may try again.
        """
        self._enough_until = 0.0
        try:
            tracking = Tracking(self._store)
        except StoreRefused as exc:
            self._refused = True
            self._ask("DEL", [key])
            log(
                logger,
                logging.INFO,
                "Redis does not tell of messages that nobody rings for (CLIENT TRACKING): each "
                "worker looks for them every second: %s",
                exc,
            )
            return 0.0
        try:
            if not self._listen(tracking, queues, key):
                return 2 * LOOK
            self._ask("DEL", [key])
            if self._ended or queues is not self._queues:
                self._store.run("ring", self._bare(queues.keys[:1]), [HAND_OVER, RINGS_TTL])
            return 0.0
        except StoreRefused:
            raise
        except StoreAway:  # as where only its connections were lost
            return AGAIN
        finally:
            tracking.close()
            self._heard = None, 0.0

    def _listen(self, tracking: Tracking, queues: _Queues, key: str) -> bool:
        """Listen; whether it is an ear still, and need not be, or cannot hear any more."""
        name, term = self._store.prefix + key, int(TERM * 1000)
        began = time.monotonic()
        renewed = began - LOOK
        alike, count_at = 1, began + COUNT_FIRST
        gap, found = 0.0, 0
        told: set[str] | None = None
        #: How often its rings were answered and something waited all the same; when one is missed.
        missed, missed_at = 0, 0.0
        second = not key.endswith(":0")
        while not self._ended and queues is self._queues:
            now = time.monotonic()
            # Bells as well: what it is told shows whether somebody rang.
            commands: list[tuple[Any, ...]] = [("EXISTS", *queues.keys)]
            if now - renewed > TERM:  # this process has slept: somebody else may be
                return False
            if now - renewed >= LOOK * 0.9:
                commands.append(("SET", name, f"{self._name} {alike}", "PX", term, "GET"))
            was, (found, *before) = found, tracking.ask(*commands)
            if before:
                other = (before[0] or self._name).partition(" ")[0]
                if other > self._name:  # of two, the last one stays
                    return False
                renewed, self._heard = now, (queues, now + TERM)
            more = missed and now >= missed_at
            rang = self._look(queues, min(4**missed, MANY) if more else 1) if found else 0
            if rang and not was and told is None and now - began > LOOK:
                return True  # nobody told of what has come: a connection is dead
            if rang or told is None or (was and not found):
                gap = 0.0
            else:  # nobody waited for it, or all have enough to do: who comes finds a ring
                gap = min(max(SOON, 2 * gap), BUSY)
            if not rang:
                missed = 0
            elif more or not missed:
                missed_at = now + min(ANSWERED * 2**missed, LOOK)
                missed += 1
            if now >= count_at:
                alike, count_at = self._alike(), now + COUNT
            told = tracking.wait(min(missed_at, now + LOOK) - now if missed else LOOK, self._bell)
            if told is not None and not self._ended:
                pause = max(gap, now + SOON - time.monotonic())
                # The second ear lets the first one.
                if not missed and (second or not told.isdisjoint(queues.keys[: queues.bells])):
                    pause = ANSWERED
                if pause > 0:
                    self._bell.wait(pause)
            if self._to_wake:
                self._wake_channel()
        return True

    def _look(self, queues: _Queues, rings: int) -> int:
        args = [queues.bells, rings, RINGS_TTL]
        return int(self._store.run("look", self._bare(queues.keys), args))

    def _alike(self) -> int:
        """How many workers wait for the same queues."""
        workers = sorted(self._store.execute("SMEMBERS", [WORKERS]))
        beats: list[Any] = []
        if workers:
            beats = self._store.execute("MGET", [lease_key(worker) for worker in workers])
        return sum(json.loads(beat).get("ear") == self.digest for beat in beats if beat)
