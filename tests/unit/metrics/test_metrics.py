"""Numbers of a worker: counted, shown, left to others."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace as Fake
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from celery_graceful.exceptions import SettingsError
from celery_graceful.history import journal
from celery_graceful.history.entry import Entry, What
from celery_graceful.metrics import counts, estate, extras, otel
from celery_graceful.metrics.catalog import CATALOG, Kind
from celery_graceful.metrics.worker_metrics import WorkerMetrics
from celery_graceful.phases import InterruptReason
from celery_graceful.settings import Settings
from celery_graceful.store.store import StoreAway
from celery_graceful.system.process import Owner
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.board import Board
from celery_graceful.timeline.grace_period import Deadlines
from celery_graceful.timeline.tallies import Tally
from celery_graceful.worker import measures
from tests.support.workers import wait_until

ROOT = Path(__file__).parents[3]
REPORTERS = ["healthchecks", "sentry", "own"]

#: In the user's place.
registry = CollectorRegistry(auto_describe=True)


class AStore:
    """Lists, and nothing else."""

    def __init__(self) -> None:
        self.lists: dict[str, list[str]] = {}
        self.away = False

    def execute(self, command: str, keys: list[str], args: list[Any] = (), **_: Any) -> Any:  # type: ignore[assignment]
        if self.away:
            raise StoreAway("it is away")
        texts = self.lists.setdefault(keys[0], [])
        if command == "RPUSH":
            texts.append(args[0])
        elif command == "LPOP":
            taken, texts[:] = texts[: args[0]], texts[args[0] :]
            return taken or None
        return None


class AWorker:
    """The metrics of one, and what it has around them."""

    def __init__(self, store: AStore | None = None, **conf: Any) -> None:
        self.owner, self.board = Owner(), Board.create()
        worker_state.attach(self.board, self.owner)
        self.settings = Settings(metrics=("prometheus",), probe_port=0, **conf)
        self.fleet: dict[str, float] = {"batches": 3}
        app: Any = Fake(main="shop", tasks={"shop.export": 1})
        self.metrics = WorkerMetrics(
            app,
            self.settings,
            self.board,
            pool="prefork",
            reporters=REPORTERS,
            owner=self.owner,
            gauges=lambda: {("running_tasks",): 2},
            fleet=lambda: self.fleet,
            find_store=lambda: store,  # type: ignore[arg-type, return-value]
        )
        try:
            self.page = self.metrics.start()["/metrics"]
        except SettingsError:
            self.owner.end()
            raise

    def scrape(self) -> dict[tuple[str, ...], float]:
        text, kind = self.page()
        assert kind.startswith("text/plain; version=0.0.4")
        return {
            (sample.name.removeprefix("celery_graceful_"), *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def happened(self, *entries: Entry) -> None:
        journal.record(None, self.settings, *entries)

    def stop(self, took: float, left: float) -> None:
        """It was asked to, and has; there is time left to tell."""
        self.board.begin_stop(Deadlines(300.0, 200.0, 250.0, "a test"), InterruptReason.SHUTDOWN)
        self.metrics.drained(took, left)

    def end(self) -> None:
        self.metrics.end()
        self.owner.end()


@pytest.fixture
def start() -> Iterator[Callable[..., AWorker]]:
    workers: list[AWorker] = []

    def make(*args: Any, **kwargs: Any) -> AWorker:
        workers.append(AWorker(*args, **kwargs))
        return workers[-1]

    yield make
    for worker in reversed(workers):
        worker.end()
    assert journal.counting.value is None


# -- names -------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", CATALOG, ids=lambda metric: metric.name)
def test_names_are_those_of_each_convention(metric: Any) -> None:
    assert re.fullmatch(r"celery_graceful_[a-z_]+", metric.prometheus)
    assert metric.prometheus.endswith("_total") == (metric.kind is Kind.COUNTER)
    unit = {"s": "_seconds", "By": "_bytes"}.get(metric.unit, "")
    assert unit in metric.prometheus
    assert re.fullmatch(r"celery_graceful(\.[a-z_]+)+", metric.opentelemetry)
    assert not re.search("seconds|bytes|total", metric.opentelemetry)
    assert re.fullmatch(r"s|By|1|\{[a-z_]+\}", metric.unit)
    assert not {"id", "uuid", "task_id"} & set(metric.labels)


def test_the_page_names_each_metric() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(celery_graceful_\w+)` \| (\w+) \| ([^|]*) \| `(\S+)` \|", page, re.M)
    assert {
        (name, kind, tuple(re.findall(r"`(\w+)`", labels)), o) for name, kind, labels, o in rows
    } == {(m.prometheus, m.kind.value, m.labels, m.opentelemetry) for m in CATALOG}


# -- counted -----------------------------------------------------------------------------


def test_moments_are_counted_kept_or_not(start: Callable[..., AWorker]) -> None:
    worker = start(history=False)
    worker.scrape()
    worker.happened(
        Entry(What.INTERRUPTED, "1", "shop.export", reason="shutdown"),
        Entry(What.INTERRUPTED, "2", "made.up", reason="its process ended with the worker"),
        Entry(What.INTERRUPTED, "3", "shop.export", reason="whatever was raised"),
        Entry(What.RELEASED, reason="hard deadline", count=7),
        Entry(What.GIVEN_UP, "4", "shop.export"),
        Entry(What.FENCED, "5", "shop.export"),
        Entry(What.DIED, "6", "shop.export"),
        Entry(What.QUARANTINED, "6", "made.up"),
        Entry(What.RESCUED, "7", "shop.export"),
        Entry(What.RESCUED, count=4),
        Entry(What.MISSING, "8"),
        Entry(What.RESENT, "8"),
        Entry(What.RESUMED, "1", "shop.export"),
        Entry(What.DEPLOY),
    )
    wait_until(lambda: worker.scrape().get(("batches",)), "the fleet is known")
    found = {key: number for key, number in worker.scrape().items() if number}
    expected = {
        ("interruptions_total", "prefork", "shutdown", "shop.export"): 1,
        ("interruptions_total", "prefork", "process_ended", "other"): 1,
        ("interruptions_total", "prefork", "other", "shop.export"): 1,
        ("released_total", "hard_deadline"): 7,
        ("given_up_total", "shop.export"): 1,
        ("fenced_total", "shop.export"): 1,
        ("deaths_total", "shop.export"): 1,
        ("quarantined_total", "other"): 1,
        ("rescued_total",): 5,
        ("batch_members_found_missing_total",): 1,
        ("batch_members_resent_total",): 1,
        ("running_tasks",): 2,
        ("batches",): 3,
    }
    assert found == expected


def test_what_comes_up_is_shown_as_zero_first(start: Callable[..., AWorker]) -> None:
    worker = start()
    assert worker.scrape()["rescued_total",] == 0
    worker.happened(Entry(What.GIVEN_UP, "1", "shop.export"), Entry(What.RESCUED, "1"))
    found = worker.scrape()
    assert (found["given_up_total", "shop.export"], found["rescued_total",]) == (0, 1)
    worker.happened(Entry(What.GIVEN_UP, "2", "shop.export"))
    assert worker.scrape()["given_up_total", "shop.export"] == 2


def test_what_processes_count(start: Callable[..., AWorker]) -> None:
    worker = start()
    tallies = worker_state.tallies()
    assert tallies is not None

    def count() -> None:
        for _ in range(500):
            tallies.add(Tally.SAVES)
        tallies.add(Tally.SAVED_BYTES, 10)
        tallies.add_check_in(2, "error")

    for _ in range(4):
        pid = os.fork()
        if not pid:
            try:
                threads = [threading.Thread(target=count) for _ in range(2)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
    count()
    worker.scrape()
    found = worker.scrape()
    assert found["checkpoint_saves_total",] == 4500
    assert found["checkpoint_saved_bytes_total",] == 90
    assert found["check_ins_total", "own", "error"] == 9
    assert found["resumes_total",] == 0


def test_nothing_is_counted_where_nobody_wants_to_know() -> None:
    owner = Owner()
    worker_state.attach(Board.create(), owner)
    try:
        assert worker_state.tallies() is None
        metrics = measures.metrics_of(*[Fake()] * 1, Settings(), *[Fake()] * 4)  # type: ignore[arg-type]
        assert metrics.start() == {}
        metrics.drained(1.0, 2.0)
        metrics.end()
    finally:
        owner.end()


# -- shown -------------------------------------------------------------------------------


def test_a_child_shows_nothing(start: Callable[..., AWorker]) -> None:
    worker = start()
    pid = os.fork()
    if not pid:
        shown = True
        try:
            worker.happened(Entry(What.RESCUED, "1"))
            shown = bool(worker.scrape())
        finally:
            os._exit(int(shown))
    assert os.waitpid(pid, 0)[1] == 0
    assert worker.scrape()["rescued_total",] == 0


def test_the_registry_of_the_user(start: Callable[..., AWorker]) -> None:
    name = f"{__name__}:registry"
    worker = start(prometheus_registry=name)
    assert not worker.metrics._prometheus.is_seen, "who registers has seen nothing"
    assert registry.get_sample_value("celery_graceful_running_tasks") == 2
    with pytest.raises(SettingsError, match="Duplicated timeseries"):
        start(prometheus_registry=name)
    worker.end()
    assert registry.get_sample_value("celery_graceful_running_tasks") is None
    for wrong, said in (
        (f"{__name__}:none", "name one that is there"),
        (f"{__name__}:os", "not a module"),
    ):
        with pytest.raises(SettingsError, match=said):
            start(prometheus_registry=wrong)


def test_open_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(otel, "_histograms", {})
    monkeypatch.setattr(otel.api, "get_meter", provider.get_meter)
    monkeypatch.setattr(otel.api, "get_meter_provider", lambda: provider)
    owner, numbers = Owner(), {("interruptions", "shutdown", "shop.export", "solo"): 2.0}
    numbers["lease_age_seconds",] = 0.5
    exporter = otel.OpenTelemetry(lambda: numbers, owner)
    exporter.observe("drain_seconds", 3.0)
    exporter.flush(1.0)
    data = reader.get_metrics_data()
    assert data is not None
    metrics = {m.name: m for m in data.resource_metrics[0].scope_metrics[0].metrics}
    (point,) = metrics["celery_graceful.task.interruptions"].data.data_points
    assert point.value == 2
    assert point.attributes == {
        "celery_graceful.reason": "shutdown",
        "celery_graceful.task": "shop.export",
        "celery_graceful.pool": "solo",
    }
    assert metrics["celery_graceful.lease.age"].unit == "s"
    (drain,) = metrics["celery_graceful.drain.duration"].data.data_points
    assert (drain.sum, drain.explicit_bounds[0]) == (3.0, 0.5)
    owner.end()
    data = reader.get_metrics_data()
    left = [] if data is None else data.resource_metrics[0].scope_metrics[0].metrics
    assert {m.name for m in left} <= {"celery_graceful.drain.duration"}, "the worker has ended"


# -- left to others ----------------------------------------------------------------------


def test_what_nobody_has_seen_is_left_to_others(start: Callable[..., AWorker]) -> None:
    store = AStore()
    old = start(store)
    old.scrape()
    old.happened(Entry(What.RESCUED, "1"))
    old.scrape()
    old.happened(Entry(What.RESCUED, "2"), Entry(What.INTERRUPTED, "3", "shop.export"))
    old.stop(4.0, -1.0)
    assert len(store.lists["graceful:metrics:shop"]) == 1
    old.end()

    new = start(store)
    assert new.scrape()["rescued_total",] == 0, "seen by nobody before it takes anything over"
    wait_until(lambda: not store.lists["graceful:metrics:shop"], "it takes that over")
    wait_until(
        lambda: new.scrape()["rescued_total",] == 1, "what had been seen is not counted again"
    )
    found = new.scrape()
    assert found["interruptions_total", "prefork", "other", "shop.export"] == 1
    assert found["drain_seconds_bucket", "2.5"] == 0
    assert found["drain_seconds_bucket", "5.0"] == found["drain_seconds_count",] == 1
    assert found["grace_left_seconds_bucket", "0.0"] == 1
    assert new.metrics._observed()["rescued",] == 0, "who has sent it to OpenTelemetry has"


def test_a_store_that_is_away_keeps_nobody(
    start: Callable[..., AWorker], caplog: pytest.LogCaptureFixture
) -> None:
    store = AStore()
    store.away = True
    worker = start(store)
    worker.happened(Entry(What.RESCUED, "1"))
    worker.stop(1.0, 60.0)
    assert worker.scrape()["rescued_total",] == 1
    assert "The last metrics of this worker are lost" in caplog.text


def test_what_a_later_version_has_left_is_left_out() -> None:
    text = (
        '[["rescued",2],["invented",1],["given_up",3],["claims_held",1],["drain_seconds","sum",2]]'
    )
    assert counts.from_json(text) == {("rescued",): 2, ("drain_seconds", "sum"): 2}
    assert estate.take(AStore(), "shop") == {}  # type: ignore[arg-type]


# -- settings ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conf", "said"),
    [
        ({"graceful_metrics": True}, "give a list, of prometheus, otel"),
        ({"graceful_metrics": ["promet"]}, "there is no such exporter, of prometheus, otel"),
        ({"graceful_metrics": ["prometheus"]}, "set graceful_probe_port as well"),
        ({"graceful_prometheus_registry": "REGISTRY"}, "as module:attribute"),
    ],
)
def test_settings_that_cannot_be_used(conf: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Settings.from_conf(conf)


def test_settings_that_can() -> None:
    assert Settings.from_conf({"graceful_metrics": "otel"}).metrics == ("otel",)
    conf = {"graceful_metrics": ["prometheus"], "graceful_prometheus_registry": "a.b:c"}
    assert Settings.from_conf(conf).prometheus_registry == "a.b:c"


@pytest.mark.parametrize("exporter", ["prometheus", "otel"])
def test_an_extra_that_is_missing(exporter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(metrics=(exporter,), probe_port=0)
    extras.check_extras(settings)
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=rf"pip install 'celery_graceful\[{exporter}\]'"):
        extras.check_extras(settings)
