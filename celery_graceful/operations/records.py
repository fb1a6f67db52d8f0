"""What operations return: frozen records, seconds as floats, times in UTC.

Each has ``to_dict()``, with names that stay as they are: what ``--json`` prints.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field, fields
from typing import Any

from celery_graceful.checkpoints.place import place

__all__ = [
    "Answer",
    "Checkpoint",
    "Claim",
    "DeadWorker",
    "Deploy",
    "Done",
    "Finding",
    "History",
    "Kill",
    "KilledTask",
    "Loop",
    "Moment",
    "Record",
    "RunningTask",
    "Status",
    "Why",
    "Worker",
    "utc",
]


def utc(seconds: float) -> dt.datetime:
    """A time, of seconds since the epoch."""
    return dt.datetime.fromtimestamp(seconds, dt.timezone.utc)


class Record:
    """What all of them can do."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON can have it: times as text in ISO format."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


@dataclass(frozen=True)
class Loop(Record):
    """A loop of a task.

    Attributes:
        name: Its path: loops inside of others have theirs in front.
        cursor: Of the last item that was done.
        ended: It has done all of its items.
    """

    name: str
    cursor: Any
    ended: bool


@dataclass(frozen=True)
class Checkpoint(Record):
    """What is saved of a task.

    Attributes:
        id: Of the task.
        task: Its name.
        interruptions: How often it was interrupted.
        loops: Its loops, in the order in which they were begun.
        steps: Those that it has done, in their order.
        state: What it has saved itself.
        own_cursor: It keeps the cursor of a loop itself, and goes on from there.
        bytes: That all of it takes.
        expires_in: Seconds until it is forgotten.
    """

    id: str
    task: str
    interruptions: int
    loops: tuple[Loop, ...] = ()
    steps: tuple[str, ...] = ()
    state: Any = None
    bytes: int = 0
    expires_in: float | None = None
    own_cursor: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether the next run starts over."""
        return not (self.loops or self.steps or self.own_cursor) and self.state is None

    @property
    def where(self) -> str:
        """Where it stands, in few words; empty if it has saved no place."""
        loops = [(loop.name, _plain(loop.cursor), loop.ended) for loop in self.loops]
        return place(loops, self.steps)


@dataclass(frozen=True)
class RunningTask(Record):
    """A task that runs, as its worker has said with its last heartbeat.

    Attributes:
        id: Of the task.
        task: Its name.
        seconds: For which it has run; ``None`` if its worker does not say.
        checkpoint: What it has saved; ``None`` for nothing.
    """

    id: str
    task: str
    seconds: float | None = None
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True)
class Worker(Record):
    """A worker whose lease runs.

    Attributes:
        id: Of this boot; it has another one after the next.
        name: Of its node, as Celery knows it.
        host, pid: Of its main process.
        app: Whose it is.
        phase: ``running``, ``quiet``, ``soft``, ``hard`` or ``exit``.
        phase_since: Since when; ``None`` if it does not say.
        since: When it started.
        seconds_left: Until it gives up what still runs; ``None`` while nobody asked it to stop.
        heard: Seconds since its last heartbeat.
        heartbeat: Seconds between two of them.
        pool, concurrency: Of its pool.
        loop_lag: Seconds that its event loop took to go round.
        tasks_keep_loop: A task that runs may keep it from that, as on solo.
        queues: That it consumes.
        running: What runs; ``running_count`` says how many, where only some are named.
        running_count: How many tasks run.
        claims: Messages that it holds; ``None`` where the broker knows that alone.
        unknown_tasks: Messages that wait for a worker that knows their task.
        process: Which process it is, on its machine; empty if it does not say.
    """

    id: str
    name: str
    host: str
    pid: int
    app: str
    phase: str
    phase_since: dt.datetime | None
    since: dt.datetime
    seconds_left: float | None
    heard: float
    heartbeat: float
    pool: str
    concurrency: int
    loop_lag: float
    queues: tuple[str, ...] = ()
    running: tuple[RunningTask, ...] = ()
    running_count: int = 0
    claims: int | None = None
    unknown_tasks: int = 0
    process: str = ""
    tasks_keep_loop: bool = False

    @property
    def fetches(self) -> bool:
        """Whether it takes messages: who is quiet, or stops, takes no more."""
        return self.phase == "running"


@dataclass(frozen=True)
class DeadWorker(Record):
    """A worker whose lease has run out: it has died, or is frozen, or cut off.

    Attributes:
        id: Of that boot.
        name: Of its node.
        claims: Messages that it held, and that wait to be given back.
        taken_for_dead: Somebody has found it, and gives them back.
    """

    id: str
    name: str
    claims: int
    taken_for_dead: bool


@dataclass(frozen=True)
class Finding(Record):
    """Something that somebody should look at.

    Attributes:
        what: It is.
        mend: Arguments of ``celery -A app graceful`` that mend it, or say more; or, where no
            command does, what to do.
        is_command: Whether ``mend`` is one.
    """

    what: str
    mend: str
    is_command: bool = True


@dataclass(frozen=True)
class Status(Record):
    """All workers, and what waits for somebody.

    Attributes:
        at: When it was asked for.
        workers: Whose leases run.
        dead: Whose leases have run out.
        quarantined: How many tasks are in quarantine.
        batches_missing: Batches that miss members.
        findings: What somebody should look at.
        waiting: Tasks whose messages were set aside for a worker that knows them, each with how
            many.
        batches_left: Batches that nobody sends the rest of: their producer has died, or failed.
    """

    at: dt.datetime
    workers: tuple[Worker, ...]
    dead: tuple[DeadWorker, ...]
    quarantined: int
    batches_missing: tuple[str, ...]
    findings: tuple[Finding, ...]
    waiting: dict[str, int] = field(default_factory=dict)
    batches_left: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim(Record):
    """A message that a worker holds.

    Attributes:
        worker: The id of the worker.
        worker_lives: Whether its lease runs.
        number: Of the claim.
        id: Of the task; empty if the message is none of Celery's.
        task: Its name.
        queue: That it came from.
        begun: A run of it has begun.
        eta: When it may start; ``None`` for at once.
        redelivered: It was delivered before.
    """

    worker: str
    worker_lives: bool
    number: int
    id: str
    task: str
    queue: str
    begun: bool
    eta: dt.datetime | None = None
    redelivered: bool = False


@dataclass(frozen=True)
class Answer(Record):
    """What a worker has answered.

    Attributes:
        worker: Name of its node.
        ok: Whether it does what was asked for.
        said: Its words; or that it has not answered.
    """

    worker: str
    ok: bool
    said: str


@dataclass(frozen=True)
class Why(Record):
    """Where a task is, and why it does not run.

    Attributes:
        id: Of the task.
        task: Its name, where it is known.
        state: ``queued``, ``claimed``, ``running``, ``quarantined``, ``done`` or ``unknown``; or
            ``batch``, where a member of a batch is one.
        sentences: For people; the first one says where it is.
        worker: That has it.
        queue: That it waits in.
        place: In that queue; 1 is the next.
        stuck: It does not run until somebody does something.
        mend: Arguments of ``celery -A app graceful`` by which that is done, where there are.
    """

    id: str
    task: str
    state: str
    sentences: tuple[str, ...]
    worker: str = ""
    queue: str = ""
    place: int | None = None
    stuck: bool = False
    mend: str = ""


@dataclass(frozen=True)
class Moment(Record):
    """Something unusual that has happened to a task; or a deploy.

    Attributes:
        at: When.
        kind: ``interrupted``, ``given_up``, ``released`` (not begun, and given back), ``resumed``,
            ``fenced`` (its claim was others' when it ended), ``died`` (the process that ran it),
            ``rescued``, ``quarantined``, ``missing`` and ``resent`` (in a batch, or out of
            quarantine), or ``deploy``.
        id: Of the task; empty where only a number is known.
        task: Its name, where it is known.
        worker: Name of the node where it happened; of a rescue, of the one that died.
        reason: Why; the text of a deploy.
        where: At which point the task stood.
        count: Of how many tasks it tells.
    """

    at: dt.datetime
    kind: str
    id: str
    task: str
    worker: str
    reason: str
    where: str
    count: int


@dataclass(frozen=True)
class Done(Record):
    """What became of a task, or a batch, that something was to be done with.

    Attributes:
        id: Its id.
        ok: It was done.
        said: What was done, or why not.
    """

    id: str
    ok: bool
    said: str


@dataclass(frozen=True)
class Deploy(Record):
    """A mark, and what happened from then until the next one.

    Attributes:
        at: When it was set.
        text: What it says.
        counts: How many tasks were interrupted and so on, by the kinds of moments.
    """

    at: dt.datetime
    text: str
    counts: dict[str, int]


@dataclass(frozen=True)
class History(Record):
    """What happened, oldest first.

    Attributes:
        id: Of the task; empty for the fleet.
        moments: As far as they are kept.
        deploys: The marks among them.
    """

    id: str
    moments: tuple[Moment, ...]
    deploys: tuple[Deploy, ...]


@dataclass(frozen=True)
class KilledTask(Record):
    """What a worker held when it was killed.

    Attributes:
        id: Of the task.
        task: Its name.
        begun: It ran when the worker was killed.
        state: ``held`` by who was killed; ``back`` in its queue, or further; ``running`` again;
            ``done``; ``quarantined``; ``lost``, as it was acknowledged before it ran; or
            ``unknown``: it is found nowhere.
        worker: Name of the node that has it.
        seconds: From the kill until it was found in that state; ``None`` while it is held.
        said: More of it, for people.
    """

    id: str
    task: str
    begun: bool
    state: str = "held"
    worker: str = ""
    seconds: float | None = None
    said: str = ""

    @property
    def is_well(self) -> bool:
        """Nothing is left to wait for: it runs again, or has ended; what had not begun is back."""
        return self.state in ("running", "done") or (self.state == "back" and not self.begun)

    @property
    def is_settled(self) -> bool:
        """It will not change any more, by what is known of it."""
        return self.is_well or self.state in ("quarantined", "lost")


@dataclass(frozen=True)
class Kill(Record):
    """A worker that was killed, and what became of what it held.

    Attributes:
        worker: The id of the worker.
        name: Of its node.
        at: When.
        seconds: That were waited.
        tasks: What it held.
    """

    worker: str
    name: str
    at: dt.datetime
    seconds: float
    tasks: tuple[KilledTask, ...]

    @property
    def is_well(self) -> bool:
        """Each of its tasks runs again, or has ended."""
        return all(task.is_well for task in self.tasks)
