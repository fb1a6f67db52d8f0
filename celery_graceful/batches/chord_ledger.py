"""What the ledger knows of chords more than of batches, in the hash of each.

=====================  =============================================================
``results``            which results the header has, where the result backend does not
                       keep them beside its counter: JSON, compressed
``gone``               how often they were looked for when they had gone
=====================  =============================================================
"""

from __future__ import annotations

from typing import Any
from zlib import compress, decompress

from kombu.utils.json import dumps, loads

from celery_graceful.batches.keys import key_of
from celery_graceful.batches.ledger import BatchLedger

__all__ = ["ChordLedger"]


class ChordLedger(BatchLedger):
    """The ledger, as who tracks chords asks it. All methods raise ``StoreAway``, too."""

    def sent_by_celery(self, chord_id: str, name: str, *, ended: bool = False) -> bool:
        """The body was sent by Celery, or is at its end; whether there is one."""
        how = "ended" if ended else "published"
        return bool(self._run("batch_by_celery", chord_id, name, how))

    def keep_results(self, chord_id: str, results: list[Any]) -> None:
        """Keep which results the header has, each as a tuple."""
        packed = compress(dumps(results).encode(), 1)
        self._ask("HSET", chord_id, "results", packed)

    def results(self, chord_id: str) -> list[Any] | None:
        """What ``keep_results`` was given."""
        found = self._ask("HGET", chord_id, "results")
        if found is None:
            return None
        results: list[Any] = loads(decompress(found.encode("utf-8", "surrogateescape")).decode())
        return results

    def are_gone(self, chord_id: str) -> int:
        """They were looked for, and have gone; how often so far."""
        return int(self._ask("HINCRBY", chord_id, "gone", 1))

    def _ask(self, command: str, chord_id: str, *args: Any) -> Any:
        return self.store.execute(command, [key_of(chord_id)], args, insist=True)
