"""``status --watch``: it goes on through an outage, and ends without a word."""

from __future__ import annotations

import signal
from collections.abc import Callable

from tests.servers import RedisServer
from tests.support.command import CELERY
from tests.support.operators import APP, make_app, send, start
from tests.support.workers import WatchedProcess, environment


def test_it_is_watched(start_server: Callable[..., RedisServer]) -> None:
    server = start_server(RedisServer)
    app = make_app(server.url(0), server.url(1))
    argv = [*CELERY, "-A", APP, "graceful", "status", "--watch", "--every", "0.2"]
    env = environment({"BROKER_URL": server.url(0), "RESULT_URL": server.url(1)})
    # While Redis is frozen, and while that is looked at.
    with (
        start(app, "one@test", CONF_graceful_lease_ttl="600.0") as one,
        WatchedProcess(argv, env=env) as watch,
    ):
        one.ready()
        watch.wait_line("1 worker, 0 running")
        send(app, "count", "counts", 10**6)
        watch.wait_line(f"{APP}.count +counts")
        watch.wait_line("at .* of loop")
        server.pause()
        watch.wait_line("Error: the broker: TimeoutError")
        server.resume()
        seen = watch.count("1 worker, 1 running")
        watch.wait_line("1 worker, 1 running", seen + 1)
        watch.signal(signal.SIGINT)
        assert watch.wait() == 130
        assert "Traceback" not in watch.output
        assert "Aborted" not in watch.output
