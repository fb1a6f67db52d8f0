"""A batch before it is sent: what it is given, and what can be refused of that by then."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from kombu.utils.json import dumps

from celery_graceful.batches import callbacks
from celery_graceful.batches.members import check_member
from celery_graceful.batches.model import CALLBACKS, Callback
from celery_graceful.batches.properties import checked, checked_description, checked_key
from celery_graceful.batches.signatures import LATER, NoMember, is_used_up, visible

__all__ = ["ANOTHER", "Unsent", "app_of"]

#: What to do about one that cannot be part of another.
ANOTHER = "make another one for this place"
_ALIKE = "make it anew, with the same callbacks, description and properties"


class Unsent:
    """What is known of a batch before it is sent. Arguments as of ``Batch``."""

    def __init__(
        self,
        *,
        on_success: Any = None,
        on_complete: Any = None,
        on_failure: Any = None,
        description: str = "",
        properties: Mapping[str, Any] | None = None,
        key: str | None = None,
        app: Any = None,
    ) -> None:
        given = zip(CALLBACKS, (on_success, on_complete, on_failure), strict=True)
        self._callbacks = {n: callbacks.check(n, sig) for n, sig in given if sig is not None}
        self.id = str(uuid4())
        self.description = checked_description(description)
        self.properties = checked(properties)
        self.key = checked_key(key)
        self._app = app or next((sig.app for sig in self._callbacks.values()), None)
        self._waiting: list[Any] = []
        self._is_new = True
        #: Of the batch that it has become part of; and whether it was looked over for that.
        self._parent: str | None = None
        self._is_looked_over = False

    def __repr__(self) -> str:
        said = ", ".join(filter(None, (self.key, self.description)))
        return f"<Batch {self.id}{said and f' ({said})'}>"

    def _made(self, app: Any, what: str = "") -> dict[str, Callback]:
        """Its callbacks, as the ledger keeps them."""
        return {
            name: callbacks.made(app, self.id, name, sig.clone(), what)
            for name, sig in self._callbacks.items()
        }

    def _like(self) -> str:
        """What it is like, but for its members."""
        sigs = {name: dict(sig) for name, sig in self._callbacks.items()}
        said = dumps((sigs, self.description, self.properties), sort_keys=True)
        return hashlib.sha1(said.encode(), usedforsecurity=False).hexdigest()

    def _look_over(
        self,
        given: Any,
        app: Any = None,
        path: tuple[Unsent, ...] = (),
        kids: set[int] | None = None,
        of: str = "",
    ) -> None:
        """Refuse what cannot be sent, also in batches inside, before anything is.

        What makes its members makes them later, and unseen.

        Args:
            given: What a user gave.
            app: The Celery app; ``None``: its own, or that of each signature.
            path: The batches that it is inside of.
            kids: Those that were given before, anywhere.
            of: What it is called, for people; empty: they know which.
        """
        app, path, ids = app or self._app, (*path, self), set[str]()
        kids = set() if kids is None else kids
        where, count = f"{of}member 1", 1
        try:
            for one in visible(given, Unsent):
                if one is LATER:  # from here on nobody can say the how many-th one is
                    count = 0
                elif isinstance(one, Unsent):
                    self._look_inside(one, f"{where},", app, path, kids)
                    one._is_looked_over = True
                else:
                    own = check_member(one.app if app is None else app, one, f"{where},")
                    if own in ids:
                        raise ValueError(f"{of}two members have the id {own}: give each its own")
                    ids.update([own] if own else [])
                count += bool(count)
                where = f"{of}member {count}" if count else f"{of}a member"
        except NoMember as exc:
            raise TypeError(f"{where}: {exc}") from exc

    def _look_inside(
        self,
        kid: Unsent,
        what: str,
        app: Any = None,
        path: tuple[Unsent, ...] = (),
        kids: set[int] | None = None,
    ) -> None:
        """Refuse a batch that cannot be inside of this one."""
        why = ""
        if any(kid is one for one in (self, *path)):
            why = "would be inside of itself: leave it out"
        elif kids is not None and id(kid) in kids:
            why = f"is given twice: {ANOTHER}"
        elif kid.key:
            why = (
                f"has a key, {kid.key!r}: give that to the outermost batch, or send this one alone"
            )
        elif not kid._is_new and kid._parent != self.id:
            why = f"was sent before: {ANOTHER}"
        elif not kid._is_new and is_used_up(kid._waiting):
            why = f"was sent in part, and an iterator of its members is used up: {_ALIKE}"
        if why:
            raise ValueError(f"{what} {kid!r} {why}")
        kids = set() if kids is None else kids
        kids.add(id(kid))
        app = app or self._app or next((sig.app for sig in kid._callbacks.values()), None)
        kid._made(app, f"{what} {kid!r}: ")
        kid._look_over(kid._waiting, app, path or (self,), kids, f"{what} {kid!r}: ")


# What a wrong argument is said to be one of.
Unsent.__init__.__qualname__ = "Batch.__init__"


def app_of(given: Any) -> Any:
    """The app of what was given, as far as that is there already; ``None`` if nobody can say."""
    for one in visible(given, Unsent):
        if one is not LATER:
            is_batch = isinstance(one, Unsent)
            app = one._app or app_of(one._waiting) if is_batch else one.app
            if app is not None:
                return app
    return None
