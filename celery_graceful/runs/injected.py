"""The exceptions that are raised in a run from outside: made so that they know of their run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from celery_graceful.exceptions import Interrupted
from celery_graceful.phases import Interrupt
from celery_graceful.timeline import worker_state

__all__ = ["Tie", "landing", "make"]


class Tie(Protocol):
    """A coroutine of a run that is cancelled, instead of an exception raised wherever it stands."""

    #: It was rung, and has not looked yet.
    asked: bool

    def ring(self) -> bool:
        """Make it look, soon; whether there is a loop that can. From anywhere."""


class _Run(Protocol):
    @property
    def interrupt(self) -> Interrupt | None: ...

    def made(self, exc: BaseException) -> None: ...

    def landed(self, cls: type[BaseException]) -> None: ...


_made_for_landing: dict[type[BaseException], type[BaseException]] = {}


def landing(cls: type[BaseException], current: Callable[[], _Run | None]) -> type[BaseException]:
    """A class like ``cls`` that tells its run when it is raised.

    CPython raises an asynchronous exception by calling its class in the target thread; that
    is the only notice there is.

    Args:
        cls: The class.
        current: The run of the thread that calls it.
    """
    if cls not in _made_for_landing:

        def __init__(self: BaseException, *args: Any) -> None:
            run = current()
            made = make(cls, run)
            cls.__init__(self, *made.args)
            if run is not None:
                run.made(self)
                run.landed(cls)

        def __reduce__(self: BaseException) -> tuple[Any, ...]:
            return cls, self.args

        _made_for_landing[cls] = type(
            cls.__name__,
            (cls,),
            {
                "__init__": __init__,
                "__reduce__": __reduce__,
                "__module__": cls.__module__,
                "__qualname__": cls.__qualname__,
                "__doc__": cls.__doc__,
            },
        )
    return _made_for_landing[cls]


def make(cls: type[BaseException], run: _Run | None) -> BaseException:
    """An instance of ``cls`` that knows the interrupt of ``run``."""
    if issubclass(cls, Interrupted):
        return cls(worker_state.worker_interrupt() if run is None else run.interrupt)
    exc = cls()
    if run is not None:
        run.made(exc)
    return exc
