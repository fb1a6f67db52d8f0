"""Repairs of a batch that cannot end by itself: what a worker does, and people by a command.

A member that was only slow and now runs twice ends once; it is the ledger that says so. What has
ended without anybody counting it, in a worker without this package, is not run again: it ends as
its result says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from celery import chord, states
from celery.utils.log import get_logger

from celery_graceful.batches.brief_status import Standing, still_open
from celery_graceful.batches.callbacks import kept_signature
from celery_graceful.batches.chord_counter import return_part
from celery_graceful.batches.chord_gathering import has_no_results
from celery_graceful.batches.chord_groups import counts_nothing
from celery_graceful.batches.chord_ledger import ChordLedger
from celery_graceful.batches.expiry import has_expired, moment
from celery_graceful.batches.findings import LostBatch, Missing, Named
from celery_graceful.batches.kept_headers import are_kept
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.marks import Mark, all_of, first_of, mark, parts_of
from celery_graceful.batches.model import Due, End, Outcome, State
from celery_graceful.batches.packing import load, unpack
from celery_graceful.batches.redis_scan import Walk
from celery_graceful.batches.search_state import callback_member, callback_name
from celery_graceful.batches.sent_again import AT_ONCE, LATELY, Lately, lately
from celery_graceful.exceptions import UnknownBatch
from celery_graceful.history.entry import Entry, What
from celery_graceful.history.journal import record
from celery_graceful.messages.comebacks import SENT_AGAIN
from celery_graceful.store.app_stores import find_workers_store, settings_of
from celery_graceful.store.store import StoreAway, fork_gate
from celery_graceful.system.describe import describe
from celery_graceful.system.loaded import is_instance

__all__ = ["Repair", "Repaired", "strange_of"]

logger = get_logger(__name__)

#: What a result says of a member that has ended, seen or not.
ENDED = {
    states.SUCCESS: Outcome.SUCCEEDED,
    states.FAILURE: Outcome.FAILED,
    states.REVOKED: Outcome.REVOKED,
}

#: Why one is left alone whose task this app does not know.
STRANGE = "its task is not known here: left to workers that know it"

#: Why one is that was not sent.
CANNOT = "it cannot be sent: {}"

Publish = Callable[[Sequence[Due]], None]


class Repaired(NamedTuple):
    """What was done for a batch.

    Attributes:
        ended: Members that had ended unseen, by their results or in quarantine.
        resent: Members that were sent again.
        failed: Members that were given up, and bodies of chords, the results for which have gone.
        called: Callbacks that were sent again.
        left: Of the others, why nothing was done.
    """

    ended: list[str]
    resent: list[str]
    failed: list[str]
    called: list[str]
    left: dict[str, str]

    @classmethod
    def nothing(cls) -> Repaired:
        """Nothing yet."""
        return cls([], [], [], [], {})

    def dealt_with(self) -> set[str]:
        """Members and callbacks that are not missing any more."""
        lately = (member for member, why in self.left.items() if why == LATELY)
        return {*self.ended, *self.resent, *self.failed, *self.called, *lately}

    def __bool__(self) -> bool:
        return bool(self.ended or self.resent or self.failed or self.called)

    def __str__(self) -> str:
        words = (
            (self.ended, "had ended unseen"),
            (self.resent, "sent again"),
            (self.failed, "given up"),
            (self.called, "callbacks sent again"),
            (self.left, "left alone"),
        )
        return ", ".join(f"{len(some)} {what}" for some, what in words if some) or "nothing done"


def strange_of(app: Any, ledger: BatchLedger, batch: str, members: Sequence[str]) -> set[str]:
    """Members and callbacks of a batch that begin with a task which this app does not know.

    Several apps may share a store. One that does not know the task would send it by its own routes.
    What cannot be read here is of another app as well.
    """
    kept = ledger.messages(batch, [one for one in members if callback_name(one) is None])
    found = set()
    for member in members:
        name, packed = callback_name(member), kept.get(member)
        try:
            if name is not None:
                sig = kept_signature(app, ledger.callback(Due(batch, name)))
            elif packed:
                sig = load(app, packed)
            else:
                continue
            is_known = all(one.task in app.tasks for one in all_of(first_of(sig)))
        except UnknownBatch:  # it was dropped meanwhile
            continue
        except StoreAway:
            raise
        except Exception as exc:
            logger.debug("%s of batch %s: %s", member, batch, describe(exc))
            is_known = False
        if not is_known:
            found.add(member)
    return found


class Repair:
    """Repairs of one app's batches.

    Args:
        app: The Celery app.
        ledger: Where they are known.
        publish: Sends callbacks that have become due.
        worker: The name of the node that makes them, for the history; empty by hand.
    """

    def __init__(
        self, app: Any, ledger: BatchLedger, publish: Publish, *, worker: str = ""
    ) -> None:
        self.app, self.ledger, self.publish = app, ledger, publish
        self.worker = worker

    def mend(
        self,
        batch: str,
        now: Standing,
        missing: Sequence[Missing],
        may_resend: Callable[[str], bool],
        *,
        fail: bool = False,
        strange: Collection[str] = (),
        seen: float | None = None,
    ) -> Repaired:
        """Do for missing members what has to be done.

        Args:
            batch: The batch.
            now: How it stands.
            missing: What was found missing.
            may_resend: Whether a task of that name may be sent again.
            fail: Give up who cannot be said to have ended, instead of sending it again.
            strange: Those that are left to others, unless they have ended; see ``strange_of``.
            seen: Since when it is known what is missing, seconds of the server's clock; now.

        Raises:
            StoreAway: The store does not answer; some of it may have been done.
        """
        done = Repaired.nothing()
        since = Lately.before(self.ledger.now(), lately(settings_of(self.app)), seen)
        missing = self._still_missing(batch, missing)
        lost = [one.member for one in missing if isinstance(one, LostBatch)]
        self._end(batch, dict.fromkeys(lost, Outcome.FAILED))
        done.failed.extend(lost)
        members = [
            one.member
            for one in missing
            if callback_name(one.member) is None and not isinstance(one, LostBatch)
        ]
        self._end_unseen(batch, now, members, done)
        ended = set(done.ended)
        rest = [member for member in members if member not in ended]
        if now.state is State.CANCELLED:
            self._end(batch, dict.fromkeys(rest, Outcome.REVOKED))
            done.failed.extend(rest)
        elif fail:
            done.left.update((member, STRANGE) for member in rest if member in strange)
            sent = self.ledger.sent_again(batch, rest)
            done.left.update((m, LATELY) for m, at in sent.items() if at >= since.since)
            rest = [member for member in rest if member not in done.left]
            self._end(batch, dict.fromkeys(rest, Outcome.FAILED))
            done.failed.extend(rest)
        else:
            self._resend(batch, rest, may_resend, done, strange, since)
        for one in missing:
            name = callback_name(one.member)
            if name is not None:
                is_lost = not isinstance(one, Named)
                self._call(batch, name, now, may_resend, done, strange, since, is_lost=is_lost)
        return done

    def _still_missing(self, batch: str, missing: Sequence[Missing]) -> list[Missing]:
        """Without what has ended since it was looked for: it was sent by hand, say."""
        found = [one.member for one in missing if not isinstance(one, (Named, LostBatch))]
        ended = set(found).difference(still_open(self.ledger, batch, found))
        return [one for one in missing if isinstance(one, Named) or one.member not in ended]

    # -- what has ended unseen --------------------------------------------------------

    def _end_unseen(
        self, batch: str, now: Standing, members: Sequence[str], done: Repaired
    ) -> None:
        # Of one that is known to have failed neither says anything new.
        members = still_open(self.ledger, batch, members)
        ends = {m: how for m in members if (how := self._outcome_of(m, now)) is not None}
        if len(ends) < len(members):
            prefix, store = f"{batch}/", find_workers_store(self.app) or self.ledger.store
            for memberships in Walk(store).messages_of("graceful:quarantine", "hash"):
                kept = {text[len(prefix) :] for text in memberships if text.startswith(prefix)}
                ends.update(dict.fromkeys(kept.intersection(members), Outcome.FAILED))
        self._return_parts(batch, list(ends))
        self._end(batch, ends)
        done.ended.extend(ends)

    def _return_parts(self, batch: str, members: Sequence[str]) -> None:
        """Of a chord: whoever died with them may not have told Celery's counter."""
        for member, packed in self.ledger.messages(batch, members).items():
            try:
                with fork_gate:
                    return_part(self.app, unpack(self.app, packed, Mark(batch, member)))
            except Exception as exc:
                logger.warning(
                    "Part %s of chord %s is not counted: %s", member, batch, describe(exc)
                )

    def _outcome_of(self, task_id: str, now: Standing) -> Outcome | None:
        """What its result says; ``None`` if that says nothing, or nobody can ask.

        One that is older than the batch is of another task: ids of one's own may come again.
        """
        backend = self.app.backend
        if is_instance(backend, "celery.backends.rpc", "RPCBackend"):
            return None  # who asks takes the result away
        try:
            with fork_gate:
                result = backend.get_task_meta(task_id, cache=False)
            done = moment(result.get("date_done"))
            is_older = done is not None and done < now.created
            return None if is_older else ENDED.get(result["status"])
        except Exception as exc:  # none, or away
            logger.debug("No result of %s: %s", task_id, describe(exc))
            return None

    def _end(self, batch: str, ends: dict[str, Outcome]) -> None:
        if ends:
            due = self.ledger.end([End(batch, member, how) for member, how in ends.items()])
            self.publish(due)

    # -- what is sent again -----------------------------------------------------------

    def _resend(
        self,
        batch: str,
        members: Sequence[str],
        may_resend: Callable[[str], bool],
        done: Repaired,
        strange: Collection[str],
        since: Lately,
    ) -> None:
        expired: list[str] = []
        # They have not begun anywhere: whoever added them could not send them.
        unsent = self.ledger.unsent(batch, members)
        for start in range(0, len(members), AT_ONCE):
            some = members[start : start + AT_ONCE]
            kept, ready = self.ledger.messages(batch, some), {}
            for member in some:
                why = ""
                if not kept.get(member):
                    why = self._why_not_kept(batch, member)
                else:
                    try:
                        sig = unpack(self.app, kept[member], Mark(batch, member))
                        if has_expired(sig):  # RabbitMQ drops it before any worker sees it
                            expired.append(member)
                            continue
                        if member in strange:
                            why = STRANGE
                        elif member not in unsent:
                            why = self._why_not(sig, may_resend)
                    except Exception as exc:
                        why = CANNOT.format(describe(exc))
                if why:
                    done.left[member] = why
                else:
                    ready[member] = sig
            self._send(batch, ready, done, since)
        self.ledger.note_unsent(batch, sorted(unsent.intersection(done.resent)), False)
        self._end(batch, dict.fromkeys(expired, Outcome.REVOKED))
        done.ended.extend(expired)

    def _send(self, batch: str, ready: dict[str, Any], done: Repaired, since: Lately) -> None:
        """Send those that nobody else has sent again since then."""
        free = self.ledger.send_again(batch, list(ready), since) if ready else set()
        sent, not_sent = [], []
        for member, sig in ready.items():
            if member not in free:
                done.left[member] = LATELY
                continue
            try:
                are_kept()
                mark(sig, {SENT_AGAIN: True})
                with fork_gate:
                    sig.apply_async()
            except Exception as exc:
                done.left[member] = CANNOT.format(describe(exc))
                not_sent.append(member)
            else:
                done.resent.append(member)
                why = f"of batch {batch}"
                sent.append(Entry(What.RESENT, member, sig.task, self.worker, why))
        if not_sent:
            self.ledger.not_sent_again(batch, not_sent)
        record(self.ledger.store, settings_of(self.app), *sent)

    def _why_not_kept(self, batch: str, member: str) -> str:
        if self.ledger.state(member) is not None:
            return f"it is a batch: mend that one (batches show {member})"
        if not self.ledger.registered(batch, [member]):
            return "it is no member of this batch"
        if self.ledger.outcomes(batch, [member]).get(member) is Outcome.SUCCEEDED:
            return "it has succeeded"
        return "its message was not kept"

    def _why_not(self, sig: Any, may_resend: Callable[[str], bool]) -> str:
        has_chord = any(isinstance(part, chord) for part in all_of(sig))
        if has_chord and counts_nothing(self.app.backend):
            return "its body may wait in a celery.chord_unlock, which says nothing of it"
        return _refusal(sig, may_resend)

    def _call(
        self,
        batch: str,
        name: str,
        now: Standing,
        may_resend: Callable[[str], bool],
        done: Repaired,
        strange: Collection[str],
        since: Lately,
        *,
        is_lost: bool,
    ) -> None:
        try:
            callback = self.ledger.callback(Due(batch, name))
        except UnknownBatch:
            done.left[callback_member(name)] = "it has no such callback"
            return
        try:
            sig = kept_signature(self.app, callback)
        except Exception as exc:
            done.left[callback_member(name)] = CANNOT.format(describe(exc))
            return
        # It has been sent when the batch moved last, or before.
        if self._outcome_of(callback.id, now) is not None or has_expired(sig, now.moved):
            self.publish(self.ledger.callback_ended(batch, name))
            done.ended.append(callback_member(name))
            return
        is_strange = callback_member(name) in strange
        refusal = STRANGE if is_strange else _refusal(sig, may_resend)
        if refusal:
            done.left[callback_member(name)] = refusal
            return
        if not self.ledger.send_again(batch, [callback_member(name)], since):
            done.left[callback_member(name)] = LATELY
            return
        given_up = False
        if callback.gathers and is_lost:  # not merely sent by one who died before saying so
            ChordLedger(self.ledger.store).are_gone(batch)
            with fork_gate:
                given_up = has_no_results(self.app.backend, batch)  # its errbacks run
        self.publish(self.ledger.fire(batch, name))
        (done.failed if given_up else done.called).append(callback_member(name))


def _refusal(sig: Any, may_resend: Callable[[str], bool]) -> str:
    """Why a signature is not sent again by itself; empty if it may be."""
    tasks = {part.task for part in all_of(sig) if parts_of(part) is None}
    refused = sorted(task for task in tasks if not may_resend(task))
    if not refused:
        return ""
    return f"not graceful, so sent again by hand only: {', '.join(refused)}"
