"""The settings: every check, every way to write them, and one clear error at worker start."""

from __future__ import annotations

import math
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured

from celery_graceful import Graceful, GracefulTask, SettingsError
from celery_graceful.checkpoints.resume import check_options
from celery_graceful.settings import Settings

ROOT = Path(__file__).parents[2]
SECONDS = ("grace_period", "soft_deadline", "hard_deadline")
ANNOTATED = "{'early': {'max_interruptions': '3'}}"
FLAGS = ("default_task", "release_prefetched", "reliable_fetch", "history", "dump_stacks")


def settings(**conf: Any) -> Settings:
    """Of an app whose configuration is set directly."""
    app = Celery("settings", set_as_current=False)
    app.conf.update(conf)
    return Graceful(app).settings


def from_object(namespace: str | None = None, **conf: Any) -> Settings:
    """Of an app that reads its configuration from an object, as Django projects do."""
    app = Celery("settings", set_as_current=False)
    app.config_from_object(SimpleNamespace(**conf), namespace=namespace)
    return Graceful(app).settings


def refused(read: Any, *args: Any, **conf: Any) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        read(*args, **conf)
    return caught.value


def test_all_that_is_wrong_is_named_at_once() -> None:
    wrong = {"graceful_lease_ttl": -1, "graceful_probe_port": "x", "graceful_gracee_period": 3}
    error = refused(settings, **wrong, graceful_batch_ttl=60)
    assert {error.name, *(other.name for other in error.others)} == wrong.keys()
    assert all(
        f"{name} = {value!r} cannot be used: " in str(error) for name, value in wrong.items()
    )
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.name) == (str(error), error.name)


def test_nothing_set() -> None:
    assert settings() == Settings()
    assert Settings().grace_period is None
    assert Settings().default_task is False
    assert Settings().release_prefetched is True


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", [1, 0.5, 30, 1e6])
def test_seconds(name: str, value: float) -> None:
    assert getattr(settings(**{f"graceful_{name}": value}), name) == value


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", [True, False])
def test_flags(name: str, value: bool) -> None:
    assert getattr(settings(**{f"graceful_{name}": value}), name) is value


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize(
    "value", ["30", True, False, [30], 0, -1, -0.5, float("nan"), float("inf"), 1j, b"1"]
)
def test_wrong_seconds(name: str, value: Any) -> None:
    error = refused(settings, **{f"graceful_{name}": value})
    assert (error.name, error.mend != "") == (f"graceful_{name}", True)
    assert str(error).startswith(f"graceful_{name} = {value!r} cannot be used: give a ")
    assert isinstance(error, ImproperlyConfigured)


@pytest.mark.parametrize(
    ("name", "value", "bounds"),
    [
        ("grace_period", 1e9, "from 0.001 to 2592000"),
        ("hard_deadline", 1e9, "from 0.001 to 2592000"),
        ("exit_timeout", 1e6, "from 0.001 to 86400"),
        ("heartbeat_interval", 0.001, "from 0.05 to 3600"),
        ("heartbeat_interval", 1e5, "from 0.05 to 3600"),
        ("rescue_interval", 3e6, "from 0.05 to 86400"),
        ("lease_ttl", 0.02, "from 0.5 to 86400"),
        ("probe_stale", 0.1, "from 0.5 to 86400"),
        ("lease_ttl", 1e6, "from 0.5 to 86400"),
        ("checkpoint_ttl", 1e20, "from 1 to 3"),
        ("poison_window", 0.5, "from 1 to 3"),
        ("history_ttl", 59, "from 60 to 3"),
        ("monitor_timeout", 1e6, "from 0.01 to 3600"),
    ],
)
def test_absurd_seconds(name: str, value: float, bounds: str) -> None:
    error = refused(settings, **{f"graceful_{name}": value})
    assert error.name == f"graceful_{name}"
    assert error.mend.startswith(f"give a number of seconds {bounds}")


@pytest.mark.parametrize(
    ("lease", "beat", "rescue"), [(60, 2.5, 2), (10, 2.5, 2), (4, 1, 0.8), (2, 0.5, 0.4)]
)
def test_a_short_lease_shortens_the_rest(lease: float, beat: float, rescue: float) -> None:
    given = settings(graceful_lease_ttl=lease)
    assert (given.heartbeat_interval, given.rescue_interval) == (beat, rescue)
    given = settings(graceful_lease_ttl=lease, graceful_heartbeat_interval=0.3)
    assert given.heartbeat_interval == 0.3


@pytest.mark.parametrize("value", [99, 1_000_001, 100.0, True, "1000"])
def test_absurd_lengths(value: Any) -> None:
    error = refused(settings, graceful_history_length=value)
    assert error.mend == "give a whole number from 100 to 1000000"


@pytest.mark.parametrize(
    ("conf", "mend"),
    [
        (
            {"lease_ttl": 3.9, "heartbeat_interval": 2},
            r"at least 4 s: two heartbeats \(graceful_heartbeat_interval\)",
        ),
        ({"checkpoint_ttl": 11}, "at least 12 s: graceful_lease_ttl and graceful_rescue_interval"),
        ({"poison_window": 11}, "at least 12 s: graceful_lease_ttl and graceful_rescue_interval"),
        ({"poison_window": 60, "lease_ttl": 60}, "at least 62 s: graceful_lease_ttl and"),
    ],
)
def test_seconds_that_do_not_fit_together(conf: dict[str, float], mend: str) -> None:
    error = refused(settings, **{f"graceful_{name}": value for name, value in conf.items()})
    assert error.name == f"graceful_{next(iter(conf))}"
    assert re.search(mend, error.mend)


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://localhost//",
        "redis://user:p%23ss@localhost:6379/2",
        "rediss://localhost/2?ssl_cert_reqs=none",
        "redis+socket:///run/redis.sock?virtual_host=2",
        "sentinel://a:26379/0;sentinel://b:26379/0",
        "sentinel://a:26379;b:26379",
    ],
)
def test_store(url: str) -> None:
    assert settings(graceful_store=url).store == url


@pytest.mark.parametrize(
    ("url", "mend"),
    [
        (5, "give the URL of a Redis"),
        ("amqp://localhost", "give the URL of a Redis"),
        ("redis://local host/0", "white space in it"),
        ("redis://localhost/0 ", "white space in it"),
        ("redis://localhost:99999/0", "the port has to be a number from 1 to 65535"),
        ("redis://localhost:port/0", "the port has to be a number from 1 to 65535"),
        ("redis://:secret#1@localhost/0", "of a password as %23"),
        ("redis://localhost/shop", "the database has to be a number, not 'shop'"),
        ("sentinel://a:26379/0;sentinel://b:0/0", "the port has to be a number"),
        ("redis+socket://", "name the socket"),
    ],
)
def test_wrong_store(url: Any, mend: str) -> None:
    error = refused(settings, graceful_store=url)
    assert error.name == "graceful_store"
    assert mend in error.mend
    assert "secret" not in str(refused(settings, graceful_store="redis://u:secret@localhost/x"))


@pytest.mark.parametrize(
    ("options", "mend"),
    [
        ([], "give a dict"),
        ({"mastername": "shop"}, "there is no such option, did you mean master_name"),
        ({"xyz": 1}, "there is no such option; known are"),
    ],
)
def test_wrong_store_options(options: Any, mend: str) -> None:
    assert mend in refused(settings, graceful_store_options=options).mend
    fine = {"master_name": "shop", "global_keyprefix": "x", "ssl": True, "socket_keepalive": True}
    assert settings(graceful_store_options=fine).store_options == fine


@pytest.mark.parametrize("value", [0, 1, 3])
def test_patience(value: float) -> None:
    assert settings(graceful_unknown_task_patience=value).unknown_task_patience == value


@pytest.mark.parametrize("value", [-1, "1 h", True, math.inf])
def test_wrong_patience(value: Any) -> None:
    error = refused(settings, graceful_unknown_task_patience=value)
    assert "or 0 for Celery's way" in str(error)


@pytest.mark.parametrize("value", [0, 1, 3])
def test_poison_limit(value: int) -> None:
    assert settings(graceful_poison_limit=value).poison_limit == value


@pytest.mark.parametrize("value", [-1, 1.5, True, "3", float("inf")])
def test_wrong_poison_limit(value: Any) -> None:
    error = refused(settings, graceful_poison_limit=value)
    assert "or 0 for no limit" in str(error)


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", ["yes", 1, 0, "False", []])
def test_wrong_flags(name: str, value: Any) -> None:
    error = refused(settings, **{f"graceful_{name}": value})
    assert str(error) == f"graceful_{name} = {value!r} cannot be used: give True or False."


@pytest.mark.parametrize("name", SECONDS + FLAGS)
def test_none_means_not_set(name: str) -> None:
    assert settings(**{f"graceful_{name}": None}) == Settings()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("grace_periode", "grace_period"),
        ("graceperiod", "grace_period"),
        ("soft_dead_line", "soft_deadline"),
        ("soft_deadlines", "soft_deadline"),
        ("harddeadline", "hard_deadline"),
        ("default_tasks", "default_task"),
        ("release_prefetch", "release_prefetched"),
        ("release_pre", "release_prefetched"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest_known_one(written: str, meant: str) -> None:
    error = refused(settings, **{f"graceful_{written}": 1})
    assert str(error) == (
        f"graceful_{written} = 1 cannot be used: there is no such setting, "
        f"did you mean graceful_{meant}."
    )


def test_unknown_name_that_is_near_to_none() -> None:
    error = refused(settings, graceful_xyz=1)
    assert all(f"graceful_{name}" in error.mend for name in SECONDS + FLAGS)


def test_other_settings_are_not_ours() -> None:
    conf = {"my_graceful_thing": 1, "disgraceful_x": 1, "gracefully": 1, "task_acks_late": True}
    assert settings(**conf) == Settings()


@pytest.mark.parametrize("namespace", ["CELERY", "MY_APP"])
def test_namespace(namespace: str) -> None:
    conf = {f"{namespace}_GRACEFUL_GRACE_PERIOD": 7, f"{namespace}_GRACEFUL_DEFAULT_TASK": True}
    assert from_object(namespace, **conf) == Settings(grace_period=7.0, default_task=True)


def test_errors_in_a_namespace_say_it_as_the_user_does() -> None:
    error = refused(from_object, "CELERY", CELERY_GRACEFUL_GRACE_PERIOD="7")
    assert error.name == "CELERY_GRACEFUL_GRACE_PERIOD"
    error = refused(from_object, "CELERY", CELERY_GRACEFUL_GRACE_PERIODE=7)
    assert str(error) == (
        "CELERY_GRACEFUL_GRACE_PERIODE = 7 cannot be used: there is no such setting, "
        "did you mean CELERY_GRACEFUL_GRACE_PERIOD."
    )


@pytest.mark.parametrize(
    ("namespace", "written", "right"),
    [
        (None, "GRACEFUL_GRACE_PERIOD", "graceful_grace_period"),
        ("CELERY", "GRACEFUL_GRACE_PERIOD", "CELERY_GRACEFUL_GRACE_PERIOD"),
        ("CELERY", "CELERY_graceful_grace_period", "CELERY_GRACEFUL_GRACE_PERIOD"),
    ],
)
def test_a_setting_that_celery_would_not_read_is_refused(
    namespace: str | None, written: str, right: str
) -> None:
    error = refused(from_object, namespace, **{written: 7})
    assert str(error) == f"{written} = 7 cannot be used: Celery does not read it, write {right}."


def test_other_settings_beside_a_namespace_are_not_ours() -> None:
    assert from_object("CELERY", GRACEFUL_EXIT=1, OTHER_GRACEFUL_X=1) == Settings()


def test_set_directly_beside_a_namespace() -> None:
    app = Celery("settings", set_as_current=False)
    app.config_from_object(SimpleNamespace(CELERY_TASK_ACKS_LATE=True), namespace="CELERY")
    app.conf.graceful_grace_period = 3
    assert Graceful(app).settings == Settings(grace_period=3.0)


def run(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python to its end, from the root of the repository."""
    return subprocess.run(
        [sys.executable, *argv],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


DJANGO = """
from celery import Celery
from celery_graceful import Graceful
app = Celery("site")
app.config_from_object("django.conf:settings", namespace="CELERY")
print(Graceful(app).settings)
"""


def test_django_settings() -> None:
    done = run("-c", DJANGO, DJANGO_SETTINGS_MODULE="tests.apps.site_settings")
    assert done.stdout.strip() == str(Settings(25.0, 1.5, 20.0, default_task=True)), done.stderr


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        (
            {"CONF_graceful_grace_period": "'30'"},
            "graceful_grace_period = '30' cannot be used: give a number of seconds, "
            "for instance 30.",
        ),
        (
            {"CONF_graceful_grace_perod": "30"},
            "graceful_grace_perod = 30 cannot be used: there is no such setting, did you mean "
            "graceful_grace_period.",
        ),
        (
            {"CONF_graceful_grace_period": "10", "CONF_graceful_hard_deadline": "12"},
            "graceful_hard_deadline = 12.0 cannot be used: give less than the grace period of "
            "10 s, which is graceful_grace_period.",
        ),
        (
            {"CONF_graceful_hard_deadline": "3", "CONF_graceful_soft_deadline": "3"},
            "graceful_soft_deadline = 3.0 cannot be used: give less than graceful_hard_deadline, "
            "which is 3 s.",
        ),
        (
            {"CONF_graceful_default_task": "True", "CONF_task_annotations": ANNOTATED},
            "early.max_interruptions = '3' cannot be used: give a whole number of 0 "
            "or more, such as 20, or None for no limit.",
        ),
    ],
    ids=["type", "name", "hard", "soft", "option"],
)
def test_one_error_at_worker_start(conf: dict[str, str], message: str) -> None:
    argv = ("-m", "celery", "-A", "tests.apps.plain", "worker", "-P", "solo")
    done = run(*argv, **conf, BROKER_URL="memory://")
    output = done.stdout + done.stderr
    assert done.returncode > 0, output
    assert output.count(message) == 1, output
    assert f"CRITICAL/MainProcess] {message}" in output, output
    assert "Traceback" not in output


def nothing() -> None:
    """A task."""


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("max_interruptions", value) for value in ("3", -1, 2.0, True, [3])),
        *(("max_run_time", value) for value in ("x", 0, -1, math.inf, math.nan, True, [600])),
        *(("checkpoint_interval", value) for value in ("soon", -1, None, math.inf, False)),
    ],
)
def test_options_of_tasks_that_cannot_be_used(option: str, value: object) -> None:
    app = Celery("options", set_as_current=False)
    app.task(name="a.fine", shared=False, base=GracefulTask)(nothing)
    wrong = app.task(name="b.wrong", shared=False, base=GracefulTask, **{option: value})(nothing)
    app.task(name="c.plain", shared=False, **{option: value})(nothing)
    with pytest.raises(SettingsError) as caught:
        check_options([*app.tasks.values(), wrong])
    assert str(caught.value).startswith(f"b.wrong.{option} = {value!r} cannot be used: give a ")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_interruptions": 0, "max_run_time": 1e-9, "checkpoint_interval": 0},
        {"max_interruptions": 20, "max_run_time": 600, "checkpoint_interval": 0.5},
    ],
)
def test_options_of_tasks_that_can_be_used(options: dict[str, float | None]) -> None:
    app = Celery("options", set_as_current=False)
    check_options([app.task(name="fine", shared=False, base=GracefulTask, **options)(nothing)])


@pytest.mark.parametrize(
    ("set_", "seconds"),
    [({}, 2), ({"lease_ttl": 60}, 2), ({"lease_ttl": 4}, 0.8), ({"rescue_interval": 3}, 3)],
)
def test_dead_workers_are_looked_for_in_proportion_to_a_short_lease(set_, seconds):
    conf = {f"graceful_{name}": value for name, value in set_.items()}
    assert Settings.from_conf(conf).rescue_interval == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("probe_port", wrong) for wrong in (True, -1, 65536, "8001", 1.5)),
        *(("probe_file", wrong) for wrong in ("probe", "", 1)),
        *(("probe_host", wrong) for wrong in ("localhost", "", 1, "1.2.3")),
    ],
)
def test_wrong_probes(name: str, value: Any) -> None:
    assert refused(settings, **{f"graceful_{name}": value}).name == f"graceful_{name}"


def test_probes() -> None:
    said = settings(graceful_probe_port=0, graceful_probe_file="/run/%n", graceful_probe_host="::1")
    assert (said.probe_port, said.probe_file, said.probe_host) == (0, "/run/%n", "::1")
    assert (Settings().probe_port, Settings().probe_file) == (None, None)
