"""``python -m tests.chaos``: see ``make chaos``."""

from __future__ import annotations

import argparse
import os
import random
import sys

from tests.chaos.rounds import POOLS, WHOLE, Round, rounds


def main() -> int:
    """Run it, and say what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--kills", type=int, default=int(os.environ.get("CHAOS_KILLS") or WHOLE))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("CHAOS_SEED") or 0))
    parser.add_argument("--pool", action="append", choices=POOLS, help="one of them, or more")
    parser.add_argument("--without", action="append", choices=("plain", "graceful"), default=[])
    options = parser.parse_args()
    seed = options.seed or random.SystemRandom().randrange(1, 10**6)
    print(f"seed {seed} (again: CHAOS_SEED={seed}), {options.kills} kills", flush=True)
    print(
        "pool     with             kills cuts pauses restarts |  sent finished quarantined stuck "
        "lost | again: died in it, died before its ack, faults | seconds",
        flush=True,
    )
    good = True
    for one in rounds(options.kills, seed, options.pool or POOLS, options.without):
        _print(one)
        good = good and (one.plain or one.verdict.good)
    return 0 if good else 1


def _print(one: Round) -> None:
    name = "plain Celery" if one.plain else "celery_graceful"
    blows, verdict = one.blows, one.verdict
    print(
        f"{one.pool:8} {name:16} {blows['kill']:5} {blows['cut']:4} {blows['pause']:6} "
        f"{blows['restart']:8} | {verdict.sent:5} {verdict.finished:8} {verdict.quarantined:11} "
        f"{len(verdict.stuck):5} {len(verdict.lost):4} | {verdict.died_in:17} "
        f"{verdict.died_after:19} {len(verdict.faults):7} | {one.seconds:7.0f}",
        flush=True,
    )
    if one.plain:
        return
    for fault in verdict.faults[:5] + verdict.lost[:5] + verdict.stuck[:5]:
        print(f"  {fault}")
    if not verdict.good:
        print(f"  journal and logs: {one.folder}")


if __name__ == "__main__":
    sys.exit(main())
