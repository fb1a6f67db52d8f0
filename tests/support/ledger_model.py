"""What batches are to come to, in plain Python: the model that the scripts are held against."""

from __future__ import annotations

from dataclasses import dataclass, field

NAMES = ("on_success", "on_complete", "on_failure")
INSTEAD = {
    "succeeded": ("pending", "failed", "revoked"),
    "failed": ("pending", "revoked"),
    "revoked": ("pending",),
}


@dataclass
class Book:
    """One batch."""

    parent: str | None
    callbacks: tuple[str, ...]
    state: str = "open"
    members: dict[str, str] = field(default_factory=dict)
    kids: set[str] = field(default_factory=set)
    fired: dict[str, str] = field(default_factory=dict)
    outcome: str | None = None
    finished: bool = False
    #: It was cancelled, and has ended: who was revoked is not remembered any more.
    cleared: bool = False
    #: It was completed by force before all of it was sent.
    cut: bool = False

    def has(self, how: str) -> bool:
        return how in self.members.values()

    def end(self, member: str, outcome: str) -> None:
        was = self.members.get(member)
        if was in INSTEAD[outcome] and not (self.cleared and was == "revoked"):
            self.members[member] = outcome

    def is_clean(self) -> bool:
        all_have = set(self.members.values()) <= {"succeeded"}
        return all_have and self.state != "cancelled" and not self.cut

    def is_complete(self) -> bool:
        sealed = self.state in ("sent", "cancelled")
        return sealed and not self.has("pending") and not self.kids

    def takes(self, inside: str | None) -> bool:
        if self.state in ("open", "sending"):
            return True
        if self.state == "cancelled" or self.finished or inside is None:
            return False
        label, _, name = inside.partition(":")
        if label == "callback":
            return self.fired.get(name) in ("due", "published")
        return self.members.get(inside) == "pending"

    def shown(self) -> str:
        return "done" if self.finished and self.state == "sent" else self.state


class Model:
    """All of them."""

    def __init__(self) -> None:
        self.books: dict[str, Book] = {}

    def settle(self) -> None:
        while any(self._settle(name, book) for name, book in self.books.items()):
            pass

    def _settle(self, name: str, book: Book) -> bool:
        before = (dict(book.fired), book.outcome, book.finished)
        due = {"on_failure"} if book.has("failed") else set()
        if book.is_complete():
            due |= {"on_complete", "on_success"} if book.is_clean() else {"on_complete"}
        for callback in due & set(book.callbacks):
            book.fired.setdefault(callback, "due")
        parent = self.books.get(book.parent or "")
        if book.is_complete() and set(book.fired.values()) <= {"ended"}:
            failed = "failed" if book.has("failed") or book.cut else "revoked"
            outcome = "succeeded" if book.is_clean() else failed
            if parent and (not book.finished or book.outcome != outcome):
                parent.kids.discard(name)
                parent.end(name, outcome)
            book.finished, book.outcome = True, outcome
            book.cleared = book.cleared or book.state == "cancelled"
        elif book.finished:
            book.finished = False
            if parent:
                parent.kids.add(name)
        return before != (book.fired, book.outcome, book.finished)

    def cancel(self, name: str) -> None:
        book = self.books[name]
        if not book.is_complete():
            book.state = "cancelled"
        if book.state == "cancelled":
            for kid in list(book.kids):
                if kid in self.books:
                    self.cancel(kid)

    def complete(self, name: str) -> None:
        book = self.books[name]
        waits = book.has("pending")
        outcome = "revoked" if book.state == "cancelled" else "failed"
        if book.state in ("open", "sending"):
            book.state, book.cut = "sent", True
        for member in book.members:
            book.end(member, outcome if book.members[member] == "pending" else "revoked")
        book.kids = set()
        if not waits:
            for callback, fired in book.fired.items():
                book.fired[callback] = "ended" if fired == "published" else fired

    def drop(self, name: str) -> None:
        parent = self.books.get(self.books.pop(name).parent or "")
        if parent:
            parent.kids.discard(name)
            parent.end(name, "revoked")
