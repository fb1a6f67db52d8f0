"""``Graceful(app)``: the only place that wires things up."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, overload

from celery import Celery
from celery.app import backends
from celery.local import Proxy
from celery.signals import beat_embedded_init, beat_init

from celery_graceful.cleanup import callbacks
from celery_graceful.cleanup.callbacks import ExitHandle, Scope
from celery_graceful.cleanup.resource import Resource
from celery_graceful.exceptions import (
    Interrupted,
    SettingsError,
    ShutdownTimeLimit,
    TaskInterrupted,
)
from celery_graceful.monitors import named_monitors
from celery_graceful.system import telemetry
from celery_graceful.system.loaded import is_instance, loaded
from celery_graceful.system.process import itself

if TYPE_CHECKING:
    from celery_graceful.monitors import Monitor
    from celery_graceful.operations import Operations
    from celery_graceful.settings import Settings

__all__ = ["Graceful"]

_WORKER_STEP = "celery_graceful.worker.bootsteps:WorkerStep"
_CONSUMER_STEP = "celery_graceful.worker.bootsteps:ConsumerStep"

T = TypeVar("T")

#: Stands for a function that was not given: ``None`` may be what one returned.
_NOTHING: Any = object()


class Graceful:
    """Adds celery_graceful to a Celery app. Doing so twice is the same as once.

    Nothing is started, and what only a worker needs is not imported, until a worker runs the app.

    Args:
        app: The app; configured before or after.

    Raises:
        TypeError: It is no Celery app.
    """

    def __init__(self, app: Any) -> None:
        if not isinstance(app, Celery):
            raise TypeError(
                f"Graceful({app!r}): give the Celery app, such as Celery('shop'){_where_it_is(app)}"
            )
        if issubclass(type(app), Proxy):  # celery.current_app stands for one
            app = app._get_current_object()
        self.app = app
        # By name: a web process must not import what only a worker needs.
        app.steps["worker"].add(_WORKER_STEP)
        app.steps["consumer"].add(_CONSUMER_STEP)
        if app.amqp_cls == "celery.app.amqp:AMQP":
            app.amqp_cls = "celery_graceful.claims.app_amqp:GracefulAMQP"
            app.__dict__.pop("amqp", None)  # made before it was configured
        if not hasattr(app, "_plain_create_task_cls"):
            app._plain_create_task_cls = app.create_task_cls
            app.create_task_cls = self._create_task_cls
            app._plain_get_backend = app._get_backend
            app._get_backend = self._get_backend
            app.on_after_configure.connect(self._on_configured, weak=False)
            if app.configured:
                self._on_configured()

        named_monitors.know(app)
        telemetry.no_errors(Interrupted, ShutdownTimeLimit, TaskInterrupted)
        if "celery.worker.control" in sys.modules:  # a worker, or ``celery control``
            from celery_graceful.worker import control

            control.install()
        for signal in (beat_init, beat_embedded_init):
            signal.connect(_on_beat, weak=False, dispatch_uid="celery_graceful.monitors")

    @property
    def settings(self) -> Settings:
        """The ``graceful_*`` settings.

        Raises:
            SettingsError: One of them cannot be used.
        """
        from celery_graceful.settings import Settings

        return Settings.from_conf(self.app.conf)

    @property
    def operations(self) -> Operations:
        """What operators see and do. Workers, claims, checkpoints; quiet, resume, stop."""
        from celery_graceful.operations import Operations

        return Operations(self.app)

    # -- cleanups --------------------------------------------------------------------

    @overload
    def on_exit(
        self,
        fn: Callable[..., Any],
        /,
        *args: Any,
        scope: Scope = ...,
        timeout: float | None = ...,
        **kwargs: Any,
    ) -> ExitHandle: ...

    @overload
    def on_exit(
        self, /, *, scope: Scope = ..., timeout: float | None = ...
    ) -> Callable[[Callable[..., Any]], ExitHandle]: ...

    def on_exit(
        self,
        fn: Any = _NOTHING,
        /,
        *args: Any,
        scope: Scope = "process",
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call ``fn(*args, **kwargs)`` at the end of the process, after its last task.

        Also as a decorator, with or without options. The callback that was registered last
        runs first. What it raises is logged. It runs in the process's main thread, except
        where that one is stuck.

        Args:
            fn: What to call.
            args: What it is given, with ``kwargs``.
            scope: In which processes: ``process`` is every process that runs tasks (a pool's
                child, or the main process of the other pools), ``worker`` the main process
                of a worker when all tasks and children are done, ``everywhere`` every
                process that registered it or was forked from one that did: also beat, a web
                process, a script.
            timeout: Seconds that it may take. With or without it never more than what
                ``graceful_exit_timeout`` leaves, half of which is kept for all callbacks in
                equal parts.
            kwargs: What it is given, by name.

        Returns:
            A handle: ``handle.cancel()`` takes it back, calling it calls ``fn``.

        Raises:
            TypeError: ``fn`` is no plain callable.
            ValueError: ``scope`` or ``timeout`` cannot be used.
        """
        itself.fill(callbacks.exit_timeout, self._exit_timeout)
        if fn is _NOTHING:
            return lambda fn: ExitHandle(fn, (), {}, scope, timeout)
        return ExitHandle(fn, args, kwargs, scope, timeout)

    @overload
    def resource(self, fn: Callable[[], Iterator[T]], /) -> Resource[T]: ...

    @overload
    def resource(
        self, /, *, name: str | None = ..., timeout: float | None = ...
    ) -> Callable[[Callable[[], Iterator[T]]], Resource[T]]: ...

    @overload
    def resource(
        self,
        /,
        *,
        open: Callable[[], T],
        close: Callable[[T], Any],
        name: str | None = ...,
        timeout: float | None = ...,
    ) -> Resource[T]: ...

    def resource(
        self,
        fn: Any = _NOTHING,
        /,
        *,
        open: Callable[[], T] | None = None,
        close: Callable[[T], Any] | None = None,
        name: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Something that each process opens for itself at first use and closes at its end.

        As a decorator on a generator function that yields it once, with or without options,
        or from ``open`` and ``close``. Then ``with db() as connection:`` or ``db.get()``.
        All threads of a process share it; a forked child opens its own. Open resources are
        closed after the exit callbacks, the one that was opened last first.

        Args:
            fn: A generator function: open, ``yield``, close.
            open: Opens and returns it.
            close: Closes what ``open`` returned.
            name: What people read in the log.
            timeout: Seconds that closing may take, as for ``on_exit``.

        Raises:
            TypeError: ``fn`` is no generator function, ``open`` comes without ``close`` or the
                other way round, or one of them is no plain callable.
            ValueError: ``timeout`` cannot be used.
        """
        itself.fill(callbacks.exit_timeout, self._exit_timeout)
        if open is not None and close is not None and fn is _NOTHING:
            return Resource.from_functions(open, close, name, timeout)
        if open is not None or close is not None:
            raise TypeError("give a generator function, or both open and close")
        if fn is not _NOTHING:
            return Resource.from_generator(fn, name, timeout)
        return lambda fn: Resource.from_generator(fn, name, timeout)

    # -- monitors --------------------------------------------------------------------

    def monitor(self, task: Any, monitor: Monitor | str) -> None:
        """Report the runs of a task to a monitor, as its class option ``monitor`` does.

        For tasks that are not yours. Before the worker starts.

        Args:
            task: The task, or its name.
            monitor: The monitor, or its slug.

        Raises:
            SettingsError: The monitor cannot be used, or that is no task.
        """
        from celery_graceful.monitors import Monitor

        if not isinstance(monitor, Monitor):
            monitor = Monitor(monitor)
        name = task if isinstance(task, str) else getattr(task, "name", None)
        if not isinstance(name, str) or not name:
            raise SettingsError("Graceful.monitor", task, "give a task, or the name of one")
        named_monitors.name(self.app, name, monitor)

    def _exit_timeout(self) -> float:
        return self.settings.exit_timeout

    def _create_task_cls(self) -> Any:
        """The base of tasks that name none: with ``graceful_default_task``, a graceful one."""
        if self.app.conf.get("graceful_default_task"):
            from celery_graceful.task.default_base import make_default

            make_default(self.app)
        return self.app._plain_create_task_cls()

    def _on_configured(self, **_: Any) -> None:
        """Groups are looked at from the first one on; it may be sent before there is a backend."""
        if self.app.conf.get("graceful_track_chords"):
            from celery_graceful.batches.chord_groups import track

            track()

    def _get_backend(self) -> Any:
        """That for Redis stores in one step; with ``graceful_track_chords`` they all say more.

        What cannot be stored while its server is away is stored later.
        """
        app, tracks = self.app, self.app.conf.get("graceful_track_chords")
        kind, url = backends.by_url(app.backend_cls or app.conf.result_backend, app.loader)
        if not isinstance(kind, type):  # a function that makes one (celery-redis-sync)
            backend = app._plain_get_backend()
            if tracks:
                from celery_graceful.batches.chord_counter import tracked

                backend.__class__ = tracked(type(backend))
            return _that_keeps_nothing(backend)
        if kind is loaded("celery.backends.redis", "RedisBackend"):
            from celery_graceful.results.one_trip import RedisBackend

            kind = RedisBackend
        else:
            from celery_graceful.results.outlasting import outlasting

            outlasts = outlasting(kind)
            if outlasts is kind and not tracks:
                return _that_keeps_nothing(app._plain_get_backend())
            kind = outlasts
        if tracks:
            from celery_graceful.batches.chord_counter import tracked

            kind = tracked(kind)
        return _that_keeps_nothing(kind(app=app, url=url))


def _that_keeps_nothing(backend: Any) -> Any:
    """A backend; that of an app without results says so.

    It has nothing that threads could share. And ``worker_deduplicate_successful_tasks`` does not
    ask it whether what comes again has succeeded: its answer, an error, would end the task.
    """
    if is_instance(backend, "celery.backends.base", "DisabledBackend"):
        backend.thread_safe, backend.persistent = True, False
    return backend


def _where_it_is(given: Any) -> str:
    """Where people keep it who have given something else."""
    if isinstance(given, type):
        return ", not its class"
    for owner in (getattr(given, "extensions", None), vars(given) if _has_dict(given) else None):
        if isinstance(owner, dict) and isinstance(owner.get("celery"), Celery):
            return " (this one keeps it as 'celery')"
    return ""


def _has_dict(given: Any) -> bool:
    return hasattr(given, "__dict__")


def _on_beat(sender: Any = None, **options: Any) -> None:
    """Beat has a scheduler now."""
    if hasattr(sender.app, "_plain_create_task_cls"):  # one of ours
        from celery_graceful.monitors.beat import install
        from celery_graceful.system.beat_stop import ends_when_told, ends_with_worker

        install(sender, **options)
        if options.get("signal") is beat_init:
            ends_when_told(sender)
        else:
            ends_with_worker()
