"""What is known of one app, for as long as there is that app."""

from __future__ import annotations

import itertools
from typing import Any, Generic, TypeVar

__all__ = ["PerApp"]

T = TypeVar("T")

_numbers = itertools.count()


class PerApp(Generic[T]):
    """One value for each app, kept by the app itself.

    Most values refer to their app. In a dictionary of ours, of weak keys or not, they would keep
    it for ever: that of each test of a program that makes one for each test.
    """

    def __init__(self) -> None:
        self._name = f"_graceful_{next(_numbers)}"

    def __contains__(self, app: Any) -> bool:
        return self._name in vars(app)

    def __getitem__(self, app: Any) -> T:
        value: T = vars(app)[self._name]
        return value

    def __setitem__(self, app: Any, value: T) -> None:
        vars(app)[self._name] = value

    def setdefault(self, app: Any, value: T) -> T:
        """The value of ``app``; this one if it has none yet."""
        kept: T = vars(app).setdefault(self._name, value)
        return kept

    def get(self, app: Any) -> T | None:
        """The value of ``app``, if it has one."""
        value: T | None = vars(app).get(self._name)
        return value
