"""What is lost, and what runs twice, while processes are killed at random."""

from __future__ import annotations

import os

from benchmarks.tables import table
from tests.chaos.rounds import rounds
from tests.servers import RedisServer

__all__ = ["chaos"]

#: Of workers and their children, in all pools together; and of all that is random.
KILLS, QUICK, SEED = 200, 30, 1


def chaos(redis: RedisServer, *, quick: bool) -> str:
    """Killed at random: workers and children by SIGKILL, connections, and Redis.

    ``CHAOS_KILLS`` says how often.
    """
    kills = int(os.environ.get("CHAOS_KILLS") or (QUICK if quick else KILLS))
    head = ("pool", "kills", "cut", "paused", "restarted", "sent", "finished", "in quarantine")
    rows = []
    for one in rounds(kills, SEED):
        blows, verdict = one.blows, one.verdict
        rows.append(
            (
                f"{one.pool}, {'plain Celery' if one.plain else 'celery_graceful'}",
                *(str(blows[kind]) for kind in ("kill", "cut", "pause", "restart")),
                str(verdict.sent),
                str(verdict.finished),
                "-" if one.plain else str(verdict.quarantined),
                str(len(verdict.stuck)),
                str(len(verdict.lost)),
                str(verdict.died_in),
                str(verdict.died_after),
                str(len(verdict.faults)),
            )
        )
    again = ("again: died in it", "before its ack", "else")
    return table((*head, "stuck", "lost", *again), rows)
