"""A real thread that has the loop show that it turns, and tells whoever wants to know.

Nothing of it is there where nobody does: no thread, no file, no port.
"""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from celery.utils.log import get_logger
from celery.utils.nodenames import node_format

import celery_graceful_probe
from celery_graceful.probes.endpoint import IN, Endpoint, Page, PortTaken
from celery_graceful.probes.file import ProbeFile
from celery_graceful.probes.health import Health
from celery_graceful.probes.systemd import Systemd
from celery_graceful.settings import Settings
from celery_graceful.system import native
from celery_graceful.system.describe import describe
from celery_graceful.system.log_thread import log
from celery_graceful.system.process import Owner, Slot, emptied

__all__ = ["Probes"]

logger = get_logger(__name__)

#: Makes the text of a page, and says its type.
Make = Callable[[], tuple[str, str]]

#: Seconds between two looks, at most.
LOOK_EVERY = 1.0

#: Seconds that its end may take; and that it rests after an error of its own.
LAST_LOOK, AFTER_ERROR = 0.5, 1.0

#: Nothing is forked while a port is opened.
_gate = native.ForkGate()


class Probes:
    """Those of one worker.

    Args:
        settings: What the user set.
        node: Name of the worker's node.
        health: What is told.
        owner: Of what the process has from this worker.
        embedded: The process is something else, and systemd's service another one.
        restarts: Whether what is stopped starts anew.
    """

    def __init__(
        self,
        settings: Settings,
        node: str,
        health: Health,
        owner: Owner,
        *,
        embedded: bool,
        restarts: Callable[[], bool],
    ) -> None:
        self.settings = settings
        self.node = node
        self.health = health
        self._owner = owner
        self._embedded = embedded
        self._restarts = restarts
        self._file: ProbeFile | None = None
        self._endpoint: Endpoint | None = None
        self._pages: dict[str, Callable[[], Page]] = {}
        self._systemd: Systemd | None = None
        self._bell = native.SILENT
        self._left = False
        self._thread: native.Thread | None = None

    def start(self, more: Mapping[str, Make] = MappingProxyType({})) -> None:
        """Begin to tell those who want to know. Before there are children.

        Args:
            more: What else is read over HTTP, by path: makes the text, and says its type.

        Raises:
            SettingsError: File or port cannot be had, or another worker has the file.
        """
        path = self.settings.probe_file or os.environ.get(celery_graceful_probe.ENVIRON)
        if not self._embedded:
            self._systemd = Systemd.announced()
        if path:
            self._file = ProbeFile(node_format(path, self.node), self.settings.probe_stale)
            logger.info("Probes: %s", self._file.path)
        if self.settings.probe_port is not None:
            self._pages = {"/live": self._live, "/ready": self._ready}
            self._pages |= {path: partial(_page, path, make) for path, make in more.items()}
            try:
                self._listen(logger.log)
            except PortTaken as exc:  # by a worker that drains, perhaps
                logger.error("%s Until it is free nobody is answered: it is tried again", exc)
        if self._file or self._pages or self._systemd:
            self._owner.fill(_probes, self)
            self._bell = native.Doorbell()
            self._thread = native.start_thread(self._run, "graceful-probes")

    def _listen(self, say: Callable[..., None]) -> None:
        """Begin to answer at the port.

        Args:
            say: Writes a line into the log.

        Raises:
            PortTaken: Another process has it.
            SettingsError: It cannot be had.
        """
        host, port = self.settings.probe_host, self.settings.probe_port
        if port is None or self._endpoint is not None:
            return
        with _gate:  # a child that is forked meanwhile would keep it
            self._endpoint = Endpoint(host, port, self._pages)
        where = (
            f"[{host}]:{self._endpoint.port}" if ":" in host else f"{host}:{self._endpoint.port}"
        )
        say(logging.INFO, "Probes: http://%s/live and /ready", where)
        for path in self._pages.keys() - {"/live", "/ready"}:
            say(logging.INFO, "Beside them: http://%s%s", where, path)

    def on_phase(self) -> None:
        """The worker has come to another phase: say so now. From any thread."""
        self._bell.ring()

    def end(self) -> None:
        """The worker ends."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._left = True
        self._bell.ring()
        if thread.wait(LAST_LOOK):  # else it still uses them
            self._owner.leave(_probes)
            self._bell = native.SILENT
            if self._endpoint is not None:
                self._endpoint.close()
        if self._file is not None:
            self._file.remove()

    def close_inherited(self) -> None:
        """In a forked child: thread, port and file are those of its parent."""
        self._thread = None
        self._bell = native.SILENT
        for each in (self._file, self._endpoint):
            if each is not None:
                each.close_inherited()

    # -- in its thread ---------------------------------------------------------------

    def _run(self) -> None:
        every = min(LOOK_EVERY, self.settings.probe_stale / 4)
        if self._systemd is not None:
            every = min(every, self._systemd.every)
        said, look_at = "", 0.0
        while not self._left:
            trouble = ""
            try:
                if self._wait(look_at - time.monotonic()) or time.monotonic() >= look_at:
                    look_at = time.monotonic() + every
                    self.health.ring()
                    self._tell()
                    self._listen_again()
            except Exception:
                trouble = traceback.format_exc()
                if trouble != said:
                    log(logger, logging.ERROR, "The worker's probes failed: %s", trouble)
                native.pause(AFTER_ERROR)
            said = trouble

    def _listen_again(self) -> None:
        """The port may be free by now."""
        try:
            self._listen(partial(log, logger))
        except PortTaken:
            pass  # said at the start

    def _wait(self, seconds: float) -> bool:
        """Answer those who ask, for as long; whether the bell has rung."""
        wanted = {self._bell.read_fd: IN}
        if self._endpoint is not None:
            wanted |= self._endpoint.waits_for()
            seconds = min(seconds, self._endpoint.seconds_to_next())
        poller = native.original("select", "poll")()
        for fd, events in wanted.items():
            poller.register(fd, events)
        heard = [fd for fd, _ in poller.poll(native.capped(seconds) * 1000)]
        if self._endpoint is not None:
            self._endpoint.go_on(heard)
        return self._bell.read_fd in heard and bool(self._bell.take())

    def _tell(self) -> None:
        not_live = self.health.not_live()
        if self._file is not None:
            self._file.write(not_live, self.health.not_ready())
        if self._systemd is not None:
            self._systemd.tell(self._state(), self.health.status(), not not_live)

    def _state(self) -> str:
        """What the worker has come to, in systemd's words."""
        if not self.health.stopping:
            return "" if self.health.not_ready() else "READY=1"
        return "RELOADING=1" if self._restarts() else "STOPPING=1"

    def _live(self) -> Page:
        why = self.health.not_live()
        return Page(503, f"not live: {why}\n") if why else Page(200, "live\n")

    def _ready(self) -> Page:
        why = self.health.not_ready()
        return Page(503, f"not ready: {why}\n") if why else Page(200, "ready\n")


def _page(path: str, make: Make) -> Page:
    """A page of others; what is wrong with it is theirs, and the probes answer all the same."""
    try:
        return Page(200, *make())
    except Exception as exc:
        log(logger, logging.ERROR, "No page %s: %s", path, describe(exc))
        return Page(500, f"{describe(exc)}\n")


def _close_inherited(probes: Slot[Probes | None]) -> None:
    for each in probes.values:
        if each is not None:
            each.close_inherited()
    emptied(probes)


#: Those of this process that tell somebody.
_probes: Slot[Probes | None] = Slot("probes", lambda: None, in_fork=_close_inherited)
