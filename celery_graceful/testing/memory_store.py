"""The store of a task under test: a dict, and what ``store/lua/checkpoint.lua`` does to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["MemoryStore"]


class MemoryStore:
    """One checkpoint.

    Args:
        on_save: Called with the names of the fields that were set, and of those deleted.
    """

    def __init__(self, on_save: Callable[[list[str], list[str]], None]) -> None:
        self.fields: dict[str, str] = {}
        self.interruptions = 0
        #: How often something was saved.
        self.saves = 0
        self._on_save = on_save
        self._is_cut_off = False

    def connect(self) -> None:
        """Another delivery begins."""
        self._is_cut_off = False

    def cut_off(self) -> None:
        """Whoever saves from here on is dead."""
        self._is_cut_off = True

    def run(
        self,
        script: str,
        keys: Sequence[str],
        args: Sequence[Any],
        *,
        timeout: float = 0.0,
        insist: bool = False,
    ) -> Any:
        """As ``Store.run``, with that script, for deliveries that come one after the other."""
        if script != "checkpoint":
            raise NotImplementedError(script)
        want_fields, interrupted, changes = args[3], args[4], args[5]
        pairs, obsolete = args[8 : 8 + 2 * changes], args[8 + 2 * changes :]
        if not self._is_cut_off:
            changed = dict(zip(pairs[::2], pairs[1::2], strict=True))
            self.fields.update(changed)
            for field in obsolete:
                self.fields.pop(field, None)
            self.interruptions += interrupted
            if changed or obsolete or interrupted:
                self.saves += 1
                self._on_save(list(changed), list(obsolete))
        found = list(self.fields.items())
        if self.interruptions:
            found.append(("interruptions", str(self.interruptions)))
        return [self.interruptions, [x for pair in found for x in pair] if want_fields else [], 0]
