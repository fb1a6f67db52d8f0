"""The checkpoint of one delivery of a task: what it has saved, and what it has to save.

A delivery reads the store once, when its task first asks for something, and writes all that
is new in one step, so what is saved always fits together. While the store is away the newest
values wait in memory.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.utils.log import get_logger

from celery_graceful.checkpoints.codec import decode, encode
from celery_graceful.checkpoints.place import CURSOR, OWN_CURSOR, STEP, key_of, place_of
from celery_graceful.checkpoints.unsaved import say_no_run, say_no_store
from celery_graceful.checkpoints.watch import Keeper, watch_of
from celery_graceful.claims.fence import DELIVERY, holds_claim
from celery_graceful.exceptions import Interrupted
from celery_graceful.messages.broadcast import is_broadcast
from celery_graceful.messages.comebacks import came_back, may_resume, replaced_by
from celery_graceful.phases import InterruptReason
from celery_graceful.runs.interrupt import current_interrupt
from celery_graceful.runs.run import Run, current
from celery_graceful.store.app_stores import find_store, settings_of
from celery_graceful.store.scan import pairs_of
from celery_graceful.store.store import COMMAND_TIMEOUT, Store, StoreAway, StoreForbidden
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.tallies import Tally
from celery_graceful.timeline.worker_state import WorkerInterrupt

if TYPE_CHECKING:
    from celery_graceful.settings import Settings

__all__ = ["CURSOR", "DELIVERY", "STEP", "Checkpoint", "key_of"]

logger = get_logger(__name__)

_ATTRIBUTE = "_graceful_checkpoint"

_STATE = "state"

#: What a call says of what is in the store; see ``store/lua/checkpoint.lua``.
_OWN, _WHOLE, _FIRST = "own", "whole", "first"

#: Seconds that a task that may have a checkpoint waits for the store, and between two looks.
LOAD_PATIENCE, LOAD_PAUSE = 10.0, 0.2

#: Seconds that one waits, and between two looks, which does not seem to have been delivered before,
#: where another delivery has saved something. Most often that one was of an earlier message, which
#: is acknowledged: it is deleted within a tenth of a second. Else it is one's own after all.
YIELD, YIELD_PAUSE = 2.0, 0.02


def _defaults() -> Settings:
    """Of a task that is called directly."""
    from celery_graceful.settings import Settings

    return Settings()


class Checkpoint:
    """Everything that one task saves, by the name of its field in the store.

    Args:
        name: Of the task.
        task_id: Of the task.
        began: When the delivery began, on the monotonic clock; ``None`` where nothing is
            saved (direct calls, eager tasks, copies of a broadcast).
        store: Where to save; ``None`` for nowhere.
        settings: What the user set.
        token: Names the delivery.
        worker: Name of the node that runs it.
        came_back: The delivery has come back: that it goes on is for the history.
        may_resume: There may be a checkpoint of an earlier delivery.
        replaced: How many tasks this one has replaced: it has their id, and goes on from none.
        is_ours: Whether the delivery has not been taken away.
    """

    def __init__(
        self,
        name: str,
        task_id: str,
        *,
        began: float | None = None,
        store: Keeper | None = None,
        settings: Settings | None = None,
        token: str = "",
        worker: str = "",
        came_back: bool = False,
        may_resume: bool = False,
        replaced: int = 0,
        is_ours: Callable[[], bool] = lambda: True,
    ) -> None:
        self.name, self.task_id = name, task_id
        self.store, self.began = store, began
        self.settings = settings or _defaults()
        self.token = token
        self.worker = worker
        #: The loops whose body runs, the innermost last.
        self.loops: list[Any] = []
        #: What an earlier run left: fields, as loaded.
        self.loaded: dict[str, str] = {}
        #: This delivery has got further than the one before.
        self.advanced = False
        #: The state as of the item in hand: it counts when that item is done.
        self.state_in_hand: str | None = None
        #: Whose item that is; ``None`` of one that was left, which comes again.
        self._in_hand_of: Any = None
        #: A later delivery has taken over.
        self.lost = False
        #: The task keeps the cursor of a loop itself.
        self._own_cursor = False
        #: How often the task was interrupted, as far as is known without asking.
        self.interruption_count = 0
        #: When it began by the clock of the store, once that has said so.
        self._began_there = ""
        self._is_loaded = began is None
        self._may_resume, self._came_back = may_resume, came_back
        self._replaced = replaced
        self._is_ours = is_ours
        #: The store had something of this delivery, or gave it what an earlier one has saved.
        self._was_there = False
        self._fields: dict[str, str] = {}
        self._unsaved: dict[str, str] = {}
        self._obsolete: set[str] = set()

    @classmethod
    def of(cls, task: Any, run: Run | None = None) -> Checkpoint:
        """The checkpoint of the call of ``task`` that the caller is part of.

        Args:
            task: The task.
            run: The delivery, when the caller knows it.
        """
        request = task.request_stack.top
        if request is None:
            if worker_state.board.value is not None:
                say_no_run(task.name)
            return cls(task.name, "")
        found = request.__dict__.get(_ATTRIBUTE)
        if found is None:
            found = request.__dict__[_ATTRIBUTE] = cls._open(task, request, run or current())
        assert isinstance(found, cls)
        return found

    @classmethod
    def _open(cls, task: Any, request: Any, run: Run | None) -> Checkpoint:
        # In ``before_start``, and in receivers of ``task_prerun``, its run has not begun.
        in_worker = run.task_id == request.id if run else worker_state.board.value is not None
        if (
            not in_worker
            or request.called_directly
            or request.is_eager
            or is_broadcast(task.app, request.delivery_info)  # others have this id, and work
        ):
            return cls(task.name, request.id or "")
        return cls(
            task.name,
            request.id,
            began=run.started_at if run else time.monotonic(),
            store=watch_of(request.__dict__).keeper or find_store(task.app),
            settings=settings_of(task.app),
            token=getattr(request, DELIVERY, None) or uuid.uuid4().hex,
            worker=request.hostname or "",
            came_back=came_back(request),
            may_resume=may_resume(request),
            replaced=replaced_by(request),
            is_ours=partial(holds_claim, task),
        )

    @staticmethod
    def used_by(request: Any) -> Checkpoint | None:
        """The checkpoint of a call, if its task asked for it."""
        found: Checkpoint | None = request.__dict__.get(_ATTRIBUTE)
        return found

    # -- values ----------------------------------------------------------------------

    @property
    def state(self) -> Any:
        """A copy of the state, ``None`` if there is none."""
        text = self.get(_STATE)
        if self.state_in_hand is not None:
            text = self.state_in_hand
        return None if text is None else decode(text)

    def set_state(self, state: Any, *, at_once: bool = False) -> None:
        """Take a copy of ``state``, to be saved together with the cursors of the loops.

        A cursor says which items are done, so inside of a loop the state is that of the item in
        hand, and is saved when that one is done.

        Args:
            state: The state.
            at_once: With the next save, whatever is in hand.

        Raises:
            CheckpointError: It is not JSON, or too large.
        """
        self.load()
        text = encode(state, "state", self.settings.checkpoint_max_bytes)
        loop = self._innermost()
        if at_once or loop is None:
            self.state_in_hand = None
            self.put(_STATE, text)
        else:
            self.state_in_hand, self._in_hand_of = text, loop
            loop.look_after_item()

    def item_done(self, loop: Any = None) -> None:
        """What was in hand is done; with ``loop`` an item of that one."""
        if self.state_in_hand is not None and loop in (None, self._in_hand_of):
            self.put(_STATE, self.state_in_hand)
            self.state_in_hand = None

    def loop_left(self, loop: Any) -> None:
        """Its item in hand is part of one of the loop around it, if there is one."""
        if self._in_hand_of is loop:
            self._in_hand_of = around = self._innermost()
            if around is not None:
                around.look_after_item()

    def _innermost(self) -> Any:
        return next((loop for loop in reversed(self.loops) if loop.saves_cursor), None)

    def body_left(self) -> None:
        """The task's code has been left: what was in hand has not been done."""
        for loop in self.loops:
            loop.deposit()
        self.loops.clear()
        self.state_in_hand = None

    @property
    def resumed(self) -> bool:
        """Whether an earlier run left anything to go on from."""
        self.load()
        return bool(self.loaded)

    @property
    def interruptions(self) -> int:
        """How often the task was interrupted."""
        self.load()
        return self.interruption_count

    def get(self, field: str) -> str | None:
        """The newest value of a field, saved or not."""
        self.load()
        return self._fields.get(field)

    def put(self, field: str, text: str) -> None:
        """Set a field, to be saved with the next save."""
        if self._fields.get(field) != text:
            self._fields[field] = self._unsaved[field] = text
            self._obsolete.discard(field)
            self.advanced = True

    def note_own_cursor(self) -> None:
        """The task keeps the cursor of a loop itself: it goes on, whatever is saved here."""
        self._own_cursor = True

    def drop(self, prefix: str) -> None:
        """Delete the cursors and steps whose path begins so, with the next save."""
        for field in list(self._fields):
            if field.startswith((CURSOR + prefix, STEP + prefix)):
                del self._fields[field]
                self._unsaved.pop(field, None)
                self._obsolete.add(field)

    def loaded_steps(self, prefix: str) -> Iterator[str]:
        """Paths of the steps that an earlier run saved and that begin so."""
        start = STEP + prefix
        return (field[len(STEP) :] for field in self.loaded if field.startswith(start))

    # -- the store -------------------------------------------------------------------

    def load(self) -> None:
        """Read what an earlier run left, once.

        Raises:
            Interrupted: The store stays away, and there may be something in it: the task must
                not start over.
        """
        if self._is_loaded:
            return
        if self.store is None:
            say_no_store()
        else:
            began = time.monotonic()
            while not self._is_loaded:
                try:
                    with self._undisturbed():
                        answer = self._call(want_fields=True, insist=True)
                        if answer != 0:
                            self._take(answer)
                            self._is_loaded = True
                            break
                    self._may_resume = time.monotonic() > began + YIELD
                    time.sleep(YIELD_PAUSE)
                except StoreForbidden:  # said in the log; it would not change while we wait
                    break
                except StoreAway as exc:
                    if not self._may_resume:
                        break
                    if time.monotonic() > began + LOAD_PATIENCE or current_interrupt() is not None:
                        waiting = WorkerInterrupt(InterruptReason.STORE_AWAY, math.inf)
                        raise Interrupted(current_interrupt() or waiting) from exc
                    time.sleep(LOAD_PAUSE)
        self._is_loaded = True

    def _take(self, answer: Any) -> None:
        if answer is None:
            return
        fields = pairs_of(answer[1])
        if fields:
            self._mark()
        self.loaded = {
            field: text
            for field, text in fields.items()
            if field == _STATE or field.startswith((CURSOR, STEP))
        }
        self._fields = {**self.loaded, **self._fields}
        if self.loaded and self._came_back and isinstance(self.store, Store):
            from celery_graceful.history.entry import Entry, What
            from celery_graceful.history.journal import record

            where, worker = place_of(self.loaded), self.worker
            resumed = Entry(What.RESUMED, self.task_id, self.name, worker, where=where)
            record(self.store, self.settings, resumed)
            tallies = worker_state.tallies()
            if tallies is not None:
                tallies.add(Tally.RESUMES)

    @property
    def place(self) -> str:
        """Where the task stands, as far as it has said; empty where it has not."""
        return place_of(self._fields)

    def save(
        self, *, interrupted: int = 0, timeout: float = COMMAND_TIMEOUT, insist: bool = False
    ) -> bool:
        """Write what is new.

        Args:
            interrupted: How often the task was interrupted since the last save.
            timeout: Seconds that the store may take.
            insist: Try also when the store was away a moment ago.

        Returns:
            Whether the store has everything.
        """
        for loop in self.loops:
            loop.deposit()
        if self.store is None or self.lost:
            return False
        if self.is_saved and not interrupted:
            return True
        try:
            with self._undisturbed():
                self._call(interrupted=interrupted, timeout=timeout, insist=insist)
                self._count_save()
                self._unsaved.clear()
                self._obsolete.clear()
        except StoreAway:
            return False
        return not self.lost

    @property
    def is_saved(self) -> bool:
        """Whether the store has all that the task has to go on from."""
        return not (self._unsaved or self._obsolete)

    def _count_save(self) -> None:
        tallies = worker_state.tallies()
        if tallies is not None and self._unsaved and not self.lost:
            tallies.add(Tally.SAVES)
            tallies.add(
                Tally.SAVED_BYTES, sum(len(text.encode()) for text in self._unsaved.values())
            )

    def _call(
        self,
        *,
        want_fields: bool = False,
        interrupted: int = 0,
        timeout: float = COMMAND_TIMEOUT,
        insist: bool = False,
    ) -> Any:
        is_first = not (self._is_loaded or self._may_resume)
        kind = _OWN if self._was_there else _FIRST if is_first else ""
        ask = partial(self._ask, want_fields=want_fields, timeout=timeout, insist=insist)
        answer = ask(kind, self._unsaved, interrupted)
        if answer == 0 and kind == _OWN:  # another run's end has deleted it, or it has expired
            count = self.interruption_count + interrupted
            answer = ask(_WHOLE, self._fields, count) if self._is_ours() else None
        if answer is None:
            self.lost = True
            logger.warning(
                "%s[%s] was delivered again while it runs here: from now on only the later "
                "run saves its checkpoint",
                self.name,
                self.task_id,
            )
            return None
        if answer == 0:
            return answer
        self.interruption_count = int(answer[0])
        self._began_there = f"@{answer[2]}"
        if kind != _FIRST:
            self._was_there = self._was_there or bool(self._unsaved or interrupted or answer[1])
        if not want_fields:
            self._mark()
        return answer

    def _mark(self) -> None:
        """Let the main process know that there is something to delete in the end."""
        if worker_state.board.value is not None:
            worker_state.board.value.marks.set(self.token)

    def _ask(
        self, kind: str, fields: dict[str, str], interrupted: int, want_fields: bool, **options: Any
    ) -> Any:
        assert self.store is not None
        assert self.began is not None
        # Only along with what is there anyway: it says no more than that the task goes on.
        if self._own_cursor and (interrupted or self._came_back) and isinstance(self.store, Store):
            fields = {**fields, OWN_CURSOR: "1"}
        changes = [item for pair in fields.items() for item in pair]
        age = self._began_there or int((time.monotonic() - self.began) * 1e6)
        ttl = int(self.settings.checkpoint_ttl * 1000)
        counts = [int(want_fields), interrupted, len(fields)]
        return self.store.run(
            "checkpoint",
            [key_of(self.name, self.task_id)],
            [self.token, age, ttl, *counts, self._replaced, kind, *changes, *self._obsolete],
            **options,
        )

    def _undisturbed(self) -> AbstractContextManager[None]:
        """An exception from outside must not land between a command and its answer."""
        run = current()
        return run.undisturbed() if run and run.task_id == self.task_id else nullcontext()
