"""A delivery, to who looks into what became of its runs."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Delivered"]


class Delivered(Protocol):
    """A delivery, as far as somebody looks into what became of its runs."""

    id: Any
    name: Any
    task: Any
    claim: Any
    message: Any
    request_dict: Any
    delivery_info: Any

    @property
    def has_left(self) -> bool:
        """Whether it is not ours any more."""

    def has_succeeded(self) -> bool:
        """Whether the child stored the result of its task before it died."""

    def put_off(self) -> None:
        """Another worker runs it, for longer than it is good to wait. In the loop."""

    def humaninfo(self) -> str:
        """For people."""
