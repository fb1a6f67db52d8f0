"""Watch a deploy: ``python -m celery_graceful.demo``.

Exit status: 0 if nothing was lost, 1 if something was, 2 if the demo cannot run here.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from celery_graceful.demo import verdict
from celery_graceful.demo.deploy import GRACE, Deploy
from celery_graceful.demo.servers import CannotRun, redis_server, slow_service
from celery_graceful.demo.table import write_table
from celery_graceful.demo.timeline import Timeline, paint

__all__ = ["main"]

#: Seconds that the HTTP service takes for an answer.
SERVICE_TAKES = 5.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m celery_graceful.demo", description=__doc__)
    parser.add_argument(
        "--pool", default="prefork", choices=("prefork", "threads", "gevent", "eventlet")
    )
    parser.add_argument("--plain", action="store_true", help="the same without celery_graceful")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return _run(options.pool, options.plain)
    except CannotRun as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run(pool: str, plain: bool) -> int:
    timeline = Timeline()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="graceful-demo-")))
        redis_url = stack.enter_context(redis_server(folder))
        service_url = stack.enter_context(
            slow_service(
                SERVICE_TAKES,
                lambda waited: timeline.event("service", f"caller hung up after {waited:.1f} s"),
            )
        )
        kind = "plain Celery" if plain else "celery_graceful"
        timeline.title(f"A deploy with {kind}, {pool} pool, {GRACE:g} s of grace")
        timeline.head()
        deploy = Deploy(
            timeline,
            redis_url=redis_url,
            service_url=service_url,
            folder=folder,
            pool=pool,
            plain=plain,
        )
        deploy.run()
        return _judge(deploy, timeline, redis_url)


def _judge(deploy: Deploy, timeline: Timeline, redis_url: str) -> int:
    """Ask what came of it, and write the table and the sum."""
    from celery_graceful.demo.app import ROWS, export_file

    timeline.title("Every task")
    write_table(deploy.history, timeline)
    sent = list(deploy.history.tasks)
    lost = verdict.lost(redis_url, sent)
    claimed = verdict.claimed(redis_url)
    waiting = verdict.waiting(redis_url)
    whole = verdict.export_is_whole(export_file("export_orders-1"), ROWS)
    twice = sum(len(task.finished) > 1 for task in deploy.history.tasks.values())
    ok = not lost and whole
    timeline.write("")
    timeline.write(f"export: {'each row once' if whole else 'rows are missing or there twice'}")
    timeline.write(f"SIGKILL: {'was needed' if deploy.had_to_kill else 'was not needed'}")
    timeline.write(f"broker: {waiting} messages waiting, {claimed} claimed")
    if twice:
        timeline.write(f"finished twice: {twice}")
    total = f"sent {len(sent)}, finished {len(sent) - len(lost)}, lost {len(lost)}"
    timeline.write(paint(total, "green" if ok else "red", timeline.out))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
