"""The interpreter's exit handlers, each of which runs once: two threads may come to run them."""

from __future__ import annotations

import atexit

from celery_graceful.system import native

__all__ = ["ExitHandlers"]


class ExitHandlers:
    """Run by the main thread at the end of the interpreter, or by the last resort.

    Both may come at the same moment. The interpreter keeps its list until the last handler has
    run, so who comes second would begin all of them again, some of them twice at a time. It waits
    instead, for the end of the process, which the first brings about.
    """

    def __init__(self) -> None:
        self._lock = native.Lock()
        self._runs_in: int | None = None

    def expect(self) -> None:
        """The main thread comes to them on its own: it has to be seen that it has."""
        atexit.register(self._enter)

    def run(self) -> None:
        """Run them, in the calling thread; does not return where another one has begun."""
        self.expect()  # the first of them is what was registered last
        atexit._run_exitfuncs()

    def _enter(self) -> None:
        me = native.thread_ident()
        with self._lock:
            if self._runs_in is None:
                self._runs_in = me
        while self._runs_in != me:
            native.pause(native.LONGEST_WAIT)
