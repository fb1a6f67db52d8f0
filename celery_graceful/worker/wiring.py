"""The parts of one worker, top to bottom: made here, and told here of each other.

Each gets what it needs when it is made, and knows only what stands above it in this list. Who has
to be told of something later is a listener.
"""

from __future__ import annotations

from typing import Any

from celery.utils.log import get_logger
from celery.worker import state

from celery_graceful.batches.caretaker_rounds import Rounds
from celery_graceful.batches.ends import Ends
from celery_graceful.batches.outbox import Outbox
from celery_graceful.checkpoints.discard import Discard
from celery_graceful.cleanup import callbacks
from celery_graceful.deliveries.custom_strategies import CustomStrategies
from celery_graceful.deliveries.duplicates import Duplicates
from celery_graceful.deliveries.late_results import LateResults
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.deliveries.requeue import Requeue
from celery_graceful.deliveries.untold_ends import UntoldEnds
from celery_graceful.deliveries.worker_services import WorkerServices
from celery_graceful.history import journal as _journal
from celery_graceful.membership.broker_servers import Servers
from celery_graceful.membership.member import WorkerView
from celery_graceful.monitors.heartbeat import Heartbeats
from celery_graceful.monitors.registry import monitors_of
from celery_graceful.poison.post_mortem import PostMortems
from celery_graceful.pools import kind_of
from celery_graceful.probes.health import Health
from celery_graceful.probes.thread import Probes
from celery_graceful.runs.run import make_lock, on_limited
from celery_graceful.settings import Settings
from celery_graceful.store import scripts
from celery_graceful.store.app_stores import disconnect
from celery_graceful.system import log_thread, native
from celery_graceful.system.log_thread import LogThread
from celery_graceful.system.process import Owner
from celery_graceful.task.base import GracefulTask
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.board import Board
from celery_graceful.timeline.grace_period import Deadlines
from celery_graceful.unusable.detection import UnusableMessages
from celery_graceful.worker.cancelling import Cancelling, drop_revoked, name_running
from celery_graceful.worker.control import ControlledWorker
from celery_graceful.worker.drain import LIMIT, STOPPED, Drain
from celery_graceful.worker.giving_up import GivingUp
from celery_graceful.worker.holdings import holdings
from celery_graceful.worker.last_stacks import LastStacks
from celery_graceful.worker.loop import Loop
from celery_graceful.worker.measures import metrics_of
from celery_graceful.worker.other_consumers import OtherConsumers
from celery_graceful.worker.process_exit import ProcessExit
from celery_graceful.worker.quiesce import Quiesce
from celery_graceful.worker.report import Report
from celery_graceful.worker.restart import Restart
from celery_graceful.worker.revocation import Revocations
from celery_graceful.worker.signal_pipe import SignalPipe
from celery_graceful.worker.successes import gather
from celery_graceful.worker.task_adoption import TaskAdoption
from celery_graceful.worker.watch import Watch

__all__ = ["Parts"]

logger = get_logger(__name__)

#: Seconds that each thread of an embedded worker gets for its end.
LAST_THREADS = 1.0

#: Seconds that the end of a worker waits for what batches have to know; and at least.
LAST_ENDS, MOMENT = 1.0, 0.2

#: Seconds that it waits for whoever is just told of a task in quarantine.
LAST_TOLD = 5.0

#: Seconds, at least, for giving back what waits for workers of a kind that is not there any more.
LAST_UNUSABLE = 0.5


class Parts(ControlledWorker):
    """The parts of one worker.

    Args:
        worker: Celery's ``WorkController``.
        settings: What the user set.
        deadlines: Seconds after a request to stop.
        embedded: The worker runs in a thread of a program that is something else.
    """

    def __init__(
        self, worker: Any, settings: Settings, deadlines: Deadlines, *, embedded: bool = False
    ) -> None:
        self.app = worker.app
        self.embedded = embedded
        self._stopped = False
        self.kind = kind = kind_of(worker)

        # -- what all stand on
        #: Of what this process has from this worker.
        self.owner = Owner()
        restart = Restart()
        self.board = board = Board.create(spawn=kind.spawns)
        worker_state.attach(board, self.owner)
        self.loop = loop = Loop(worker, green=kind.is_green)
        self.log = log = LogThread(logger, through_loop=loop.ring if kind.is_green else None)
        self.owner.fill(log_thread.current, log)
        self.journal = _journal.Journal()
        self.owner.fill(_journal.current, self.journal)

        # -- batches that its tasks are part of
        self.outbox = outbox = Outbox(worker.app, loop.ring)
        self.ends = ends = Ends(worker.app, loop.ring, outbox.due)

        self.rounds = Rounds(
            worker.app,
            settings,
            worker.hostname,
            outbox.due,
            lambda name: isinstance(worker.app.tasks.get(name), GracefulTask),
        )

        # -- messages, from their arrival to their one outcome
        post_mortems = PostMortems(worker.app, loop.ring, in_process=kind.in_process)
        self.ledger = ledger = Ledger(Requeue(worker.app, loop), post_mortems)
        duplicates = Duplicates(ledger)
        self.heartbeats = Heartbeats(ledger.check_ins, monitors_of(worker.app).dispatch.heartbeat)

        # -- the pool, and what is asked of the worker
        self.drain = drain = Drain(worker, settings, deadlines, board, ledger, restart, log)
        self.adapter = adapter = kind.adapter(
            worker,
            ledger,
            CustomStrategies(ledger),
            ring_loop=loop.ring,
            ring_watch=drain.ring,
            read_pending=loop.read_pending,
        )
        self.owner.fill(on_limited, lambda: drain.ring(LIMIT))

        # -- what it cannot make a task of; where it is one among others
        self.unusable = unusable = UnusableMessages(
            worker.app,
            settings,
            ledger,
            board,
            ends,
            queue_of=loop.queue_of,
            ring_loop=loop.ring,
            tasks_run_here=kind.in_process,
        )
        self.places = places = Servers(
            WorkerView(
                worker,
                settings,
                ledger,
                board,
                ends,
                outbox,
                ring_loop=loop.ring,
                notify=adapter.notify,
                # A green pool has no event loop: its consumer looks every two seconds for room.
                on_room=loop.turn,
                # What is embedded may be one of several, and Celery counts what all of them hold.
                has_enough=(lambda room, took: False) if embedded else loop.has_enough,
                on_no_message=unusable.on_no_message,
                unknown_tasks=lambda: unusable.waiting,
                tasks_keep_loop=adapter.may_keep_loop,
                delivers_at_once=not (adapter.may_keep_loop or kind.is_green),
                one_at_a_time=adapter.one_at_a_time,
            )
        )

        # -- what is done for a delivery
        self.revocations = revocations = Revocations(
            ledger, adapter, board, deadlines.hard, ring_watch=drain.ring
        )
        self.cancelling = cancelling = Cancelling(worker, ledger, board, loop.ring)
        late_results = LateResults(ledger, loop.ring)
        #: What the worker does for its deliveries.
        self.host = WorkerServices(
            ledger,
            duplicates,
            UntoldEnds(ledger, duplicates),
            late_results,
            ends,
            Discard(worker.app),
            process=worker._process_task,
            can_pass_by=kind.can_pass_by,
            is_connected=lambda: loop.alive,
            revoke=revocations.begin,
            on_check_in=self.heartbeats.begin,
            on_waiting=cancelling.came,
        )

        # -- the way to a stop, and out
        self.adoption = TaskAdoption(worker.app, self.host, adapter, unusable)
        self.others = others = OtherConsumers()
        self.metrics = metrics = metrics_of(worker, settings, board, ledger, places, self.owner)
        self.report = report = Report(ledger, board, log, metrics.drained)
        self.giving_up = giving_up = GivingUp(
            worker, ledger, board, deadlines, others, log, unusable.keep
        )
        self.quiesce = quiesce = Quiesce(
            worker,
            board,
            loop,
            ledger,
            duplicates,
            adapter,
            places,
            unusable,
            others,
            revocations,
            giving_up,
            late_results,
            ends,
            outbox,
            request_stop=drain.request_stop,
        )
        self.signal_pipe = signal_pipe = SignalPipe(drain, self.owner, in_process=kind.in_process)
        self.leaving = leaving = ProcessExit(
            worker,
            deadlines,
            board,
            ledger,
            adapter,
            places,
            giving_up,
            signal_pipe,
            restart,
            report,
            log,
        )
        self.watch = Watch(
            drain,
            loop,
            ledger,
            adapter,
            places,
            quiesce,
            revocations,
            giving_up,
            signal_pipe,
            LastStacks(ledger, board, adapter, settings, log),
            leave=adapter.leave if embedded else leaving.by_force,  # the process may not be ours
            log=log,
            embedded=embedded,
        )

        self.probes = probes = Probes(
            settings,
            worker.hostname,
            Health(
                settings,
                board,
                loop,
                busy=lambda: adapter.may_keep_loop and bool(ledger.active()),
                heard=lambda: places.is_heard,
                cut_off=lambda: places.is_cut_off,
                running=lambda: len(ledger.active()),
                silent=lambda: places.lease_age,
            ),
            self.owner,
            embedded=embedded,
            restarts=lambda: restart.asked_for,
        )

        # -- who is told of what
        drain.add_first_listener(adapter.hear_stop)
        drain.add_listener(probes.on_phase)
        ledger.add_listener(quiesce.on_change)
        ledger.add_listener(unusable.on_change)
        for on_loop in (
            places.on_loop,
            adapter.on_loop,
            log.write_pending,
            post_mortems.on_loop,
            revocations.on_loop,
            cancelling.on_loop,
            late_results.on_loop,
            unusable.on_loop,
            ends.on_loop,
            outbox.on_loop,
            quiesce.on_loop,
        ):
            loop.add_listener(on_loop)

    # -- for its commands ------------------------------------------------------------

    def status(self, consumer: Any, task_id: str | None) -> dict[str, Any]:
        return {
            "phase": self.board.phase.name.lower(),
            "tasks": holdings(self.ledger, consumer, task_id),
        }

    def cancel(self, batches: set[str]) -> int:
        return self.cancelling.cancel(batches)

    def name_running(self) -> None:
        name_running(self.ledger)

    def drop_revoked(self) -> None:
        drop_revoked(self.ledger)

    # -- its life --------------------------------------------------------------------

    def start(self) -> None:
        """Start the watch; before the pool starts.

        Raises:
            SettingsError: Another worker has the file or the port of its probes.
        """
        try:
            self.probes.start(self.metrics.start())
        except BaseException:
            self.metrics.end()
            raise
        scripts.read_all()
        self.owner.fill(make_lock, native.lock_maker())
        gather(state.successful_requests)
        self.adapter.prepare(self.owner)
        self.adapter.keep_jobs()
        if not self.embedded:
            self.signal_pipe.start()
        self.watch.start()
        self.ledger.post_mortems.start()
        self.rounds.start()

    def stopped(self) -> None:
        """Celery has stopped all of the worker."""
        self._stopped = True
        self.giving_up.wait()
        self.giving_up.end()
        self.report.write()
        self.log.write_pending()
        self.board.close()
        self._leave()
        self.owner.leave(log_thread.current)
        self.probes.end()
        self.metrics.end()
        self.drain.ring(STOPPED)
        if self.drain.stopping and not self.embedded:
            self.leaving.leave_at_exit()

    def _leave(self) -> None:
        last = min(LAST_ENDS, max(MOMENT, callbacks.time_left() / 2))
        self.rounds.end(last)
        self.cancelling.end(last)
        self.host.late_results.end(last)
        self.ends.end(last)
        self.places.leave()
        self.outbox.end(last)
        self.journal.end(last)
        self.ledger.post_mortems.leave(min(LAST_TOLD, max(MOMENT, callbacks.time_left() / 2)))
        # In this order: of several that leave at once, the last one finds nobody else.
        self.unusable.end(max(LAST_UNUSABLE, callbacks.time_left() / 2))

    def end(self) -> None:
        """The process goes on without the worker: end all that it began there."""
        if not self._stopped:  # it did not get far, or hangs
            self._leave()
        self.heartbeats.end()
        self.probes.end()
        self.metrics.end()
        self.watch.end(LAST_THREADS)
        self.loop.end(LAST_THREADS)
        self.ledger.post_mortems.end(LAST_THREADS)
        self.log.end(LAST_THREADS)
        self.owner.end()
        self.board.close()
        self.places.disconnect()
        disconnect(self.app)
