"""Who looks on while a task works, and keeps what it saves: nobody, outside of tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

__all__ = ["UNWATCHED", "WATCH", "Keeper", "Watch", "Watched", "watch_of"]

T = TypeVar("T")

#: Name of the attribute of a request under which the one of its delivery is found.
WATCH = "_graceful_watch"


class Keeper(Protocol):
    """What checkpoints are kept in: a ``Store``, or something that runs their script as it does."""

    def run(
        self,
        script: str,
        keys: Sequence[str],
        args: Sequence[Any],
        *,
        timeout: float = ...,
        insist: bool = ...,
    ) -> Any: ...


class Watched(Protocol):
    """A loop, as whoever looks on sees it."""

    cursor: Any
    path: str

    def save_after_item(self) -> None: ...


class Watch:
    """Is told where a task stands. This one does nothing with it.

    Attributes:
        keeper: Where the delivery saves, instead of its app's store.
    """

    keeper: Keeper | None = None

    def items(self, loop: Watched, items: Iterator[T]) -> Iterator[T]:
        """What a loop gives its body."""
        return items

    def step_known(self, path: str) -> None:
        """An earlier run has done this step."""

    def step_begins(self, path: str) -> None:
        """Its function is called next."""

    def step_ran(self, path: str) -> None:
        """Its function has returned, and the result is not saved."""

    def step_saved(self, path: str) -> None:
        """Nor is it repeated any more."""

    def checkpoint_comes(self) -> None:
        """``checkpoint`` was called; what it is given is not saved."""

    def checkpoint_passed(self) -> None:
        """It returns."""


UNWATCHED = Watch()


def watch_of(attributes: Mapping[str, Any]) -> Watch:
    """That of a delivery.

    Args:
        attributes: Of its request.
    """
    found = attributes.get(WATCH)
    return found if isinstance(found, Watch) else UNWATCHED  # a message may say anything
