"""Slugs of beat entries: each its own, whatever the entries are called, and whenever they come."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from celery_graceful.monitors.slug import hashed, slug_of_entry
from celery_graceful.system.log_thread import log

__all__ = ["Entries"]

logger = logging.getLogger(__name__)


class Entries:
    """The beat entries of one app that report to monitors.

    What an entry reports to depends on its name. Names that differ in nothing but capitals,
    spaces or accents, and those of monitors that tasks have already, get a hash where they meet.
    """

    def __init__(self) -> None:
        self._slugs: dict[str, str] = {}
        self._taken: dict[str, str] = {}
        #: By slug: who reports to it, and why there is a hash in it; until that is said.
        self._unsaid: dict[str, tuple[str, str]] = {}

    def take(self, slug: str, owner: str) -> str:
        """Somebody reports to ``slug``; returns who does: ``owner``, or who came before."""
        return self._taken.setdefault(slug, owner)

    def know(self, names: Iterable[str]) -> None:
        """The entries that there are at start, in any order."""
        for name in sorted(names, key=lambda name: (slug_of_entry(name) != name, name)):
            self.slug(name)

    def slug(self, name: str) -> str:
        """What an entry reports to."""
        if name not in self._slugs:
            self._slugs[name] = self._find(name)
        return self._slugs[name]

    def _find(self, name: str) -> str:
        owner = f"beat entry {name!r}"
        slug = slug_of_entry(name)
        why = "of what is cut or dropped from its name"
        other = self.take(slug, owner)
        if other != owner:
            slug, why = hashed(name), f"since {other} would report to the same one"
            self.take(slug, owner)
        elif slug != hashed(name):
            return slug
        self._unsaid[slug] = owner, why
        return slug

    def renamed(self) -> list[tuple[str, str, str]]:
        """Those of which ``say`` would speak: who reports, the slug, and why a hash is in it."""
        return [(owner, slug, why) for slug, (owner, why) in self._unsaid.items()]

    def say(self, slug: str | None = None) -> None:
        """Say once that a slug is not what the name of its entry is written as; or all of them."""
        for one in [*self._unsaid] if slug is None else [slug]:
            owner, why = self._unsaid.pop(one, (None, None))
            if owner is not None:
                log(
                    logger,
                    logging.WARNING,
                    "The monitor of %s is called %s, with a hash %s: rename the entry for "
                    "another one",
                    owner,
                    one,
                    why,
                )
