"""Headers of our own: their names, and what becomes of them when a task is tried again.

Nobody else sees them: a task that hands its ``request.headers`` on, to pass the name of a tenant or
the id of a request along, must not make a task that it sends a part of its batch, nor give it its
own claim.
"""

from __future__ import annotations

__all__ = [
    "BATCH",
    "CALLBACK",
    "CARRIED",
    "CHORD",
    "CLAIM",
    "COPY",
    "DELIVERY",
    "KEPT",
    "LAST",
    "MONITOR",
    "OWN",
    "SENT_AGAIN",
]

#: Under this name a delivery knows its claim: ``<worker>/<number>``.
CLAIM = "graceful_claim"

#: Under this one the main process hands a delivery's token to the child.
DELIVERY = "graceful_delivery"

#: Of messages that were sent again, and have been delivered before.
SENT_AGAIN = "graceful_sent_again"

#: What a task is to a batch; see ``batches/marks.py``.
BATCH, CALLBACK, COPY = "graceful_batch", "graceful_batch_callback", "graceful_copy"
LAST, CHORD = "graceful_last", "graceful_chord"

#: What is put over headers that others add when a member, or a callback, is sent; see
#: ``batches/kept_headers.py``.
KEPT = "graceful_headers"

#: In which beat says which entry it was.
MONITOR = "graceful_monitor"

#: Those that the next try of a task has as well. The others are of one delivery.
CARRIED = (BATCH, CALLBACK, COPY, LAST, CHORD, MONITOR)

OWN = (CLAIM, DELIVERY, SENT_AGAIN, KEPT, *CARRIED)
