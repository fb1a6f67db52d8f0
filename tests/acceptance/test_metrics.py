"""What Prometheus collects of real workers, and what of it outlives them."""

from __future__ import annotations

import re
import signal
import urllib.request
from contextlib import closing
from pathlib import Path

from celery import Celery
from prometheus_client.parser import text_string_to_metric_families

from celery_graceful.metrics.catalog import CATALOG, Kind
from celery_graceful.testing.fake_monitor import FakeMonitor
from tests.conftest import RedisDB
from tests.support.promql import KNOWN
from tests.support.workers import TIMEOUT, Worker, wait_until

APP = "tests.apps.measured"

#: By name, without the prefix, and the values of labels in the order of their names.
Scrape = dict[tuple[str, ...], float]


class Scraped:
    """A worker, collected from."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._starts = 1

    def starts_anew(self) -> None:
        self._starts += 1

    def text(self, timeout: float = TIMEOUT) -> str:
        line = self.worker.wait_line(r"http://127\.0\.0\.1:\d+/metrics", self._starts)
        (url,) = re.findall(r"http://127\.0\.0\.1:\d+/metrics", line)
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return answer.read().decode()

    def scrape(self) -> Scrape:
        return {
            (
                sample.name.removeprefix("celery_graceful_"),
                *map(sample.labels.get, sorted(sample.labels)),
            ): sample.value
            for family in text_string_to_metric_families(self.text())
            for sample in family.samples
        }

    def comes_to(self, *key: str, least: float = 1) -> None:
        wait_until(lambda: self.scrape().get(key, 0) >= least, f"{key} is {least}", 0.1)


def test_what_is_counted_outlives_its_worker(redis_db: RedisDB, tmp_path: Path) -> None:
    with closing(FakeMonitor()) as monitor:
        _outlives(redis_db, tmp_path, monitor)


def _outlives(redis_db: RedisDB, tmp_path: Path, monitor: FakeMonitor) -> None:
    env = {
        "BROKER_URL": redis_db.url,
        "GRACE": "3000",
        "CONF_graceful_metrics": "['prometheus', 'otel']",
        "CONF_graceful_probe_port": "0",
        "CONF_graceful_healthchecks_url": repr(monitor.ping_url),
        "CONF_graceful_heartbeat_interval": "0.3",
    }
    app = Celery(broker=redis_db.url)
    rows = f"{APP}.rows"

    def send(name: str) -> Path:
        app.signature(rows, (str(tmp_path / name),)).apply_async()
        return tmp_path / name

    with (
        Worker(APP, concurrency=1, env=env, hostname="one@test") as one,
        Worker(APP, concurrency=1, env=env, hostname="two@test") as two,
    ):
        one.ready(), two.ready()
        go_on = send("dies")
        wait_until(lambda: one.count("row 3") or two.count("row 3"), "it runs")
        dies, lives = (one, two) if one.count("row 3") else (two, one)
        dying, living = Scraped(dies), Scraped(lives)
        assert living.scrape()["rescued_total",] == 0
        dying.comes_to("checkpoint_saves_total", least=3)
        dying.comes_to("check_ins_total", "healthchecks", "in_progress")
        dying.comes_to("running_tasks")
        found = dying.scrape()
        assert found["checkpoint_saved_bytes_total",] > 3
        assert (found["claims_held",], found["running_tasks",], found["phase", "running"]) == (
            1,
            1,
            1,
        )
        assert found["lease_age_seconds",] >= 0
        assert found["loop_lag_seconds",] >= 0

        go_on.touch()
        dies.signal(signal.SIGKILL, group=True)
        assert dies.wait() == -signal.SIGKILL
        name = "one" if dies is one else "two"
        (lease,) = redis_db.client.keys(f"graceful:lease:{name}@test:*")
        redis_db.client.delete(lease)  # as if its time were up
        living.comes_to("rescued_total")
        living.comes_to("deaths_total", rows)
        living.comes_to("resumes_total")
        living.comes_to("check_ins_total", "healthchecks", "ok")

        go_on = send("interrupted")
        lives.wait_line("row 3")
        go_on.touch()
        lives.signal(signal.SIGHUP)  # it drains, and starts anew
        living.starts_anew()
        living.comes_to("interruptions_total", "prefork", "shutdown", rows)
        living.comes_to("drain_seconds_count")
        living.comes_to("grace_left_seconds_count")
        living.comes_to("resumes_total", least=1)
        found = {}
        wait_until(
            lambda: found.update(living.scrape()) or ("batches",) in found, "it has asked", 0.1
        )
        assert found["grace_left_seconds_bucket", "0.0"] == 0
        assert found["drain_seconds_count",] == 1
        assert found["batches",] == found["quarantine_tasks",] == 0

        _is_the_catalog(living.text())
        lives.term()
        assert lives.wait() == 0


def _is_the_catalog(text: str) -> None:
    """What dashboard and rules are held against is what a worker shows."""
    families = {family.name: family for family in text_string_to_metric_families(text)}
    shown = {name for name in families if name.startswith("celery_graceful_")}
    assert shown == {metric.prometheus.removesuffix("_total") for metric in CATALOG}
    for metric in CATALOG:
        family = families[metric.prometheus.removesuffix("_total")]
        assert family.type == metric.kind.value
        for sample in family.samples:
            assert sample.labels.keys() == KNOWN[sample.name], sample
        assert family.samples or metric.labels, family.name
        assert metric.kind is not Kind.HISTOGRAM or family.samples
