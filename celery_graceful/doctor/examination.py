"""What the checks look at: an app and its environment, each part looked up when first asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from celery_graceful.doctor.needs import lacking_rights
from celery_graceful.doctor.servers import RedisServer
from celery_graceful.exceptions import SettingsError
from celery_graceful.messages.amqp import is_amqp
from celery_graceful.messages.bounded_connections import bounded_connection
from celery_graceful.monitors.registry import Monitors
from celery_graceful.operations.asking import patience
from celery_graceful.settings import Settings
from celery_graceful.store.app_stores import (
    broker_store,
    broker_stores,
    find_store,
    is_kombus_redis,
    results_store,
)
from celery_graceful.store.connections import unconnected_channel
from celery_graceful.store.store import Store
from celery_graceful.system.describe import describe
from celery_graceful.timeline.grace_period import (
    TOLD,
    Deadlines,
    GracePeriod,
    deadlines_of,
    detect,
)

__all__ = ["CannotCheck", "Examination"]


class CannotCheck(Exception):
    """A check cannot be made.

    Args:
        what: What could not be checked, for people.
        why: What it lacks.
    """

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")
        self.what, self.why = what, why


def _need(*parts: Any) -> None:
    """To look them up has raised, if they cannot be used."""


class Examination:
    """One app, looked at once, without a worker.

    Args:
        app: The Celery app, graceful.
        prestop: Seconds that a hook takes before SIGTERM is sent.
        dockerfile: The file that the worker's image is built from.
        command: The command line that the platform starts.
        environ: That of the worker; this process's when ``None``.
        root: Where ``/proc`` and the like are.
    """

    def __init__(
        self,
        app: Any,
        *,
        prestop: float = 0.0,
        dockerfile: Path | None = None,
        command: str | None = None,
        environ: Mapping[str, str] | None = None,
        root: Path = Path("/"),
    ) -> None:
        self.app = app
        self.prestop = prestop
        self.dockerfile = dockerfile
        self.command = command
        self.environ = os.environ if environ is None else environ
        self.root = root
        #: What could not be checked, and why.
        self.unchecked: dict[str, str] = {}
        #: A check could not be made, for a reason that it does not know of.
        self.has_failed = False
        #: A server did not answer.
        self._away = False

    @cached_property
    def settings(self) -> Settings:
        """The ``graceful_*`` settings.

        Raises:
            CannotCheck: One of them cannot be used, which is a finding of its own.
        """
        try:
            return Settings.from_conf(self.app.conf)
        except SettingsError as exc:
            raise CannotCheck("what depends on the settings", f"{exc.name} cannot be used") from exc

    def detect(self) -> GracePeriod:
        """The platform's grace period.

        Raises:
            SettingsError: A variable of the environment cannot be used.
        """
        return detect(self.environ, root=self.root)

    def platform_grace(self, otherwise: GracePeriod) -> GracePeriod:
        """What the platform has said that it gives, whatever a worker is told to count on.

        Args:
            otherwise: Where it has not: a default says little.

        Raises:
            CannotCheck: A variable of the environment cannot be used.
        """
        untold = {name: value for name, value in self.environ.items() if name != TOLD}
        try:
            given = detect(untold, root=self.root)
        except SettingsError as exc:
            raise CannotCheck("what the platform gives", f"{exc.name} cannot be used") from exc
        return given if given.is_said else otherwise

    @cached_property
    def grace(self) -> tuple[GracePeriod, Deadlines]:
        """The grace period that a worker here has, and its deadlines.

        Raises:
            CannotCheck: They cannot be computed, which is a finding of its own.
        """
        try:
            return deadlines_of(self.settings, self.detect)
        except SettingsError as exc:
            raise CannotCheck("what depends on the grace period", f"{exc.name} is unfit") from exc

    @property
    def deadlines(self) -> Deadlines:
        """When a worker here gets stricter.

        Raises:
            CannotCheck: They cannot be computed.
        """
        return self.grace[1]

    @cached_property
    def import_error(self) -> Exception | None:
        """Why the modules of the app, which a worker imports, cannot be imported."""
        try:
            self.app.loader.import_default_modules()
            self.app.finalize(auto=True)
        except Exception as exc:  # users' code may raise anything
            return exc
        return None

    @cached_property
    def tasks(self) -> list[Any]:
        """The app's tasks, without Celery's own, by name.

        Raises:
            CannotCheck: They cannot be imported, which is a finding of its own.
        """
        if self.import_error is not None:
            raise CannotCheck("the tasks", "the app's modules cannot be imported")
        tasks = self.app.tasks
        return [tasks[name] for name in sorted(tasks) if not name.startswith("celery.")]

    def limit(self, task: Any, option: str = "time_limit") -> float:
        """Seconds that a run of a task may take; 0 for no limit.

        Before Celery 5.7 a task does not say so where the limit is that of all.
        """
        return float(getattr(task, option) or self.app.conf.get(f"task_{option}") or 0)

    def any_limit(self, task: Any) -> float:
        """As ``limit``, by either of its limits."""
        return self.limit(task) or self.limit(task, "soft_time_limit")

    @cached_property
    def monitors(self) -> Monitors:
        """The monitors, for nobody to report to.

        Raises:
            CannotCheck: The settings cannot be used.
        """
        _need(self.settings)
        return Monitors(self.app)

    @cached_property
    def monitor_faults(self) -> list[SettingsError]:
        """Why no worker starts with these monitors.

        Raises:
            CannotCheck: The settings cannot be used.
        """
        return list(self.monitors.faults())

    # -- servers -----------------------------------------------------------------------

    @cached_property
    def connection(self) -> Any:
        """One to the broker that workers read from, as they make it; not connected.

        Raises:
            CannotCheck: Its URL cannot be used, or its driver is not there.
        """
        try:
            connection = self.app.connection_for_read()
            _need(connection.transport)
        except Exception as exc:  # each driver has errors of its own
            self.could_not_reach("the broker", describe(exc))
            raise CannotCheck("the broker", describe(exc)) from exc
        return connection

    @cached_property
    def store(self) -> Store | None:
        """Where checkpoints are kept; need not answer.

        Raises:
            CannotCheck: The settings, or the broker's URL, cannot be used.
        """
        _need(self.settings, self.connection)
        return find_store(self.app)

    @cached_property
    def broker(self) -> Store | None:
        """The broker, where it is a Redis; the first of several. Need not answer.

        Raises:
            CannotCheck: Its URL cannot be used.
        """
        _need(self.connection)
        return broker_store(self.app)

    @cached_property
    def servers(self) -> list[RedisServer]:
        """The Redis servers that keep what is ours, and that answer.

        Raises:
            CannotCheck: The broker's URL cannot be used.
        """
        return [server for server in self._answering if not server.is_results]

    @cached_property
    def _answering(self) -> list[RedisServer]:
        """As ``servers``, with that of the results; others are told as unchecked."""
        _need(self.connection)
        stores = broker_stores(self.app)
        asked = [RedisServer(store, is_broker=True) for store in stores]
        try:
            if self.store is not None and self.store not in stores:
                asked.append(RedisServer(self.store))
        except CannotCheck:
            pass  # a finding of its own
        try:
            results = results_store(self.app)
        except Exception as exc:  # its URL cannot be used
            self.unchecked["the result backend"] = describe(exc)
            results = None
        if results is not None:
            asked.append(RedisServer(results, is_results=True))
        answering = []
        with ThreadPoolExecutor() as pool:  # they may be away together
            whether = list(pool.map(RedisServer.away, asked))
        for server, away in zip(asked, whether, strict=True):
            if away is None:
                answering.append(server)
            else:
                self.could_not_reach(server.name, away)
        return answering

    @cached_property
    def lacking(self) -> list[tuple[RedisServer, list[str]]]:
        """Rights that users of Redis servers lack."""
        return lacking_rights(self.app, self.connection.transport, self._answering)

    @cached_property
    def claims(self) -> bool:
        """Whether workers claim what they fetch."""
        transport = self.connection.transport
        if not is_kombus_redis(transport):
            return False
        with unconnected_channel(transport) as channel:
            return bool(getattr(channel, "may_claim", False))

    @cached_property
    def rabbit_answers(self) -> bool:
        """Whether RabbitMQ is the broker and answers; if it does not, it is told as unchecked."""
        if not is_amqp(self.connection):
            return False
        try:
            with bounded_connection(self.connection, patience(self.connection)):
                return True
        except Exception as exc:  # the driver has errors of many kinds
            self.could_not_reach(f"RabbitMQ at {self.connection.as_uri()}", describe(exc))
            return False

    def could_not_reach(self, what: str, why: str) -> None:
        """Enter what could not be checked since a server does not answer."""
        self._away = True
        self.unchecked[what] = why

    @property
    def misses_a_server(self) -> bool:
        """Whether one that has to be asked did not answer; each is asked, if no check has."""
        try:
            _need(self.servers, self.rabbit_answers)  # each says what it could not reach
        except CannotCheck:
            pass
        return self._away
