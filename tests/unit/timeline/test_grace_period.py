"""Where the grace period comes from, and the deadlines that follow from it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from celery_graceful.exceptions import SettingsError
from celery_graceful.timeline.grace_period import Deadlines, GracePeriod, deadlines, detect

PID = str(os.getpid())
SERVICE = "0::/system.slice/celery.service\n"
SESSION = "0::/user.slice/user-1000.slice/session-3.scope\n"
HIDDEN = "0::/\n"

FakeSystemctl = Callable[..., Path]


def a_root(tmp_path: Path, *, cgroup: str | None = None, dockerenv: bool = False) -> Path:
    """A real file system root that holds nothing but these files."""
    root = tmp_path / "root"
    (root / "proc/self").mkdir(parents=True)
    if cgroup is not None:
        (root / "proc/self/cgroup").write_text(cgroup, encoding="utf-8")
    if dockerenv:
        (root / ".dockerenv").touch()
    return root


def must_not_run(command: Sequence[str]) -> str:
    raise AssertionError(f"{command} was run")


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSystemctl:
    """Puts a real, fake ``systemctl`` on PATH, alone, that notes its arguments in a file."""
    path = tmp_path / "bin"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setattr("celery_graceful.timeline.grace_period._SYSTEMCTL_TIMEOUT", 60.0)

    def install(answer: str = "", *, body: str = "", status: int = 0) -> Path:
        calls = tmp_path / "calls"
        script = path / "systemctl"
        script.write_text(
            f"#!/bin/sh\nprintf '%s\\n' \"$*\" >>'{calls}'\n{body}\n"
            f"printf '%s\\n' '{answer}'\nexit {status}\n",
            encoding="utf-8",
        )
        script.chmod(0o755)
        return calls

    return install


# -- what the operator says ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "seconds", "source"),
    [
        ({"GRACEFUL_GRACE_PERIOD": "12.5"}, 12.5, "GRACEFUL_GRACE_PERIOD=12.5 in the environment"),
        (
            {"TERMINATION_GRACE_PERIOD_SECONDS": "600"},
            600.0,
            "TERMINATION_GRACE_PERIOD_SECONDS=600 in the environment",
        ),
        (
            {"GRACEFUL_GRACE_PERIOD": "7", "TERMINATION_GRACE_PERIOD_SECONDS": "600"},
            7.0,
            "GRACEFUL_GRACE_PERIOD=7 in the environment",
        ),
        (
            {"TERMINATION_GRACE_PERIOD_SECONDS": "600", "SUPERVISOR_ENABLED": "1", "DYNO": "w.1"},
            600.0,
            "TERMINATION_GRACE_PERIOD_SECONDS=600 in the environment",
        ),
        (
            {"GRACEFUL_GRACE_PERIOD": " ", "TERMINATION_GRACE_PERIOD_SECONDS": "600"},
            600.0,
            "TERMINATION_GRACE_PERIOD_SECONDS=600 in the environment",
        ),
    ],
)
def test_the_environment_wins_over_all_detection(
    tmp_path: Path, environ: Mapping[str, str], seconds: float, source: str
) -> None:
    root = a_root(tmp_path, cgroup=SERVICE, dockerenv=True)
    assert detect(environ, root=root, run=must_not_run) == GracePeriod(seconds, source)


@pytest.mark.parametrize("name", ["GRACEFUL_GRACE_PERIOD", "TERMINATION_GRACE_PERIOD_SECONDS"])
@pytest.mark.parametrize("value", ["soon", "30s", "0", "-1", "nan", "inf", "1e999", "1e9"])
def test_an_unusable_variable_is_refused_by_name(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        detect({name: value}, root=a_root(tmp_path))
    assert caught.value.name == name
    assert caught.value.value == value
    assert caught.value.mend


@pytest.mark.parametrize("name", ["GRACEFUL_GRACE_PERIOD", "TERMINATION_GRACE_PERIOD_SECONDS"])
def test_an_empty_variable_is_not_set(tmp_path: Path, name: str) -> None:
    found = detect({name: "", "DYNO": "worker.1"}, root=a_root(tmp_path))
    assert found.source == "Heroku's default (DYNO is set)"


def test_an_error_quotes_the_variable_that_it_names() -> None:
    grace = detect({"GRACEFUL_GRACE_PERIOD": "7"}, run=must_not_run)
    with pytest.raises(SettingsError, match="7 s, which is GRACEFUL_GRACE_PERIOD=7 in"):
        deadlines(grace, hard=8.0)


# -- defaults of platforms and process managers ----------------------------------------------


@pytest.mark.parametrize(
    ("environ", "seconds", "source"),
    [
        ({"DYNO": "worker.1"}, 30, "Heroku's default (DYNO is set)"),
        (
            {"ECS_CONTAINER_METADATA_URI_V4": "http://169.254.170.2/v4/x"},
            30,
            "Amazon ECS's default (ECS_CONTAINER_METADATA_URI_V4 is set)",
        ),
        (
            {"ECS_CONTAINER_METADATA_URI": "http://169.254.170.2/v3/x"},
            30,
            "Amazon ECS's default (ECS_CONTAINER_METADATA_URI is set)",
        ),
        (
            {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
            30,
            "Kubernetes's default (KUBERNETES_SERVICE_HOST is set)",
        ),
        ({"K_SERVICE": "shop"}, 10, "Cloud Run's default (K_SERVICE is set)"),
        ({"CLOUD_RUN_JOB": "shop"}, 10, "Cloud Run's default (CLOUD_RUN_JOB is set)"),
        (
            {"CLOUD_RUN_WORKER_POOL": "shop"},
            10,
            "Cloud Run's default (CLOUD_RUN_WORKER_POOL is set)",
        ),
        ({"FLY_APP_NAME": "shop"}, 5, "Fly.io's default (FLY_APP_NAME is set)"),
        ({"RENDER": "true"}, 30, "Render's default (RENDER is set)"),
        ({"SUPERVISOR_ENABLED": "1"}, 10, "supervisord's default (SUPERVISOR_ENABLED is set)"),
        ({"HONCHO_PROCESS_NAME": "w.1"}, 5, "honcho's default (HONCHO_PROCESS_NAME is set)"),
        ({"PS": "w.1", "PORT": "5000"}, 5, "foreman's default (PS and PORT are set)"),
        ({}, 30, "the fallback: no platform was recognised"),
        # Marks that say nothing.
        ({"PORT": "5000"}, 30, "the fallback: no platform was recognised"),
        ({"PS": "w.1"}, 30, "the fallback: no platform was recognised"),
        ({"FLY_APP_NAME": ""}, 30, "the fallback: no platform was recognised"),
    ],
)
def test_each_mark_gives_its_documented_default(
    tmp_path: Path, environ: Mapping[str, str], seconds: float, source: str
) -> None:
    found = detect(environ, root=a_root(tmp_path), run=must_not_run)
    assert found == GracePeriod(seconds, source)
    assert isinstance(found.seconds, float)


@pytest.mark.parametrize(
    ("environ", "seconds", "owner"),
    [
        pytest.param({}, 10, "Docker", id="plain Docker"),
        pytest.param({"KUBERNETES_SERVICE_HOST": "x"}, 30, "Kubernetes", id="Kubernetes"),
        pytest.param({"ECS_CONTAINER_METADATA_URI_V4": "x"}, 30, "Amazon ECS", id="ECS"),
        pytest.param({"SUPERVISOR_ENABLED": "1"}, 10, "supervisord", id="a tie"),
        pytest.param(
            {"KUBERNETES_SERVICE_HOST": "x", "SUPERVISOR_ENABLED": "1"},
            10,
            "supervisord",
            id="supervisord in a pod",
        ),
        pytest.param({"DYNO": "w.1", "PS": "w.1", "PORT": "1"}, 5, "foreman", id="in a dyno"),
        pytest.param(
            {"FLY_APP_NAME": "x", "SUPERVISOR_ENABLED": "1"},
            5,
            "Fly.io",
            id="the platform has less patience than the manager",
        ),
        pytest.param(
            {"KUBERNETES_SERVICE_HOST": "x", "K_SERVICE": "x"}, 10, "Cloud Run", id="Knative"
        ),
    ],
)
def test_inside_a_container_the_smallest_real_bound_counts(
    tmp_path: Path, environ: Mapping[str, str], seconds: float, owner: str
) -> None:
    found = detect(environ, root=a_root(tmp_path, dockerenv=True), run=must_not_run)
    assert found.seconds == seconds
    assert found.source.startswith(f"{owner}'s default (")


def test_the_process_environment_is_looked_at_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRACEFUL_GRACE_PERIOD", "17")
    assert detect(root=a_root(tmp_path)).seconds == 17


# -- systemd ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("span", "seconds"),
    [
        ("1min 30s", 90.0),
        ("20s", 20.0),
        ("5min", 300.0),
        ("1.500000s", 1.5),
        ("500ms", 0.5),
        ("250us", 0.00025),
        ("1h 2min 3s", 3723.0),
        ("1w 3d", 864_000.0),
        ("1y 1month 4d 7h 30min", 34_560_000.0),
    ],
)
def test_systemd_is_asked_about_our_own_unit(
    tmp_path: Path, systemctl: FakeSystemctl, span: str, seconds: float
) -> None:
    calls = systemctl(f"TimeoutStopUSec={span}")
    found = detect({}, root=a_root(tmp_path, cgroup=SERVICE))
    assert found.seconds == pytest.approx(seconds)
    assert found.is_said
    assert found.source == f"systemd (TimeoutStopUSec of celery.service is {span})"
    assert calls.read_text() == "show -p TimeoutStopUSec -- celery.service\n"


@pytest.mark.parametrize(
    ("cgroup", "arguments"),
    [
        (
            "0::/system.slice/system-celery.slice/celery@2.service\n",
            "show -p TimeoutStopUSec -- celery@2.service",
        ),
        ("0::/celery.service\n", "show -p TimeoutStopUSec -- celery.service"),
        # systemd escapes names that would clash with the kernel's by an underscore.
        ("0::/system.slice/_cpu.service\n", "show -p TimeoutStopUSec -- cpu.service"),
        (
            "9:memory:/system.slice/other.service\n1:name=systemd:/system.slice/celery.service\n",
            "show -p TimeoutStopUSec -- celery.service",
        ),
        (
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/celery.service\n",
            "--user show -p TimeoutStopUSec -- celery.service",
        ),
    ],
)
def test_the_unit_is_found_in_the_cgroup(
    tmp_path: Path, systemctl: FakeSystemctl, cgroup: str, arguments: str
) -> None:
    calls = systemctl("TimeoutStopUSec=45s")
    assert detect({}, root=a_root(tmp_path, cgroup=cgroup)).seconds == 45
    assert calls.read_text() == f"{arguments}\n"


@pytest.mark.parametrize(
    "cgroup",
    [
        pytest.param(SESSION, id="a shell of a login session"),
        pytest.param(
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/vte-spawn-1.scope\n",
            id="a shell of a desktop terminal",
        ),
        pytest.param(HIDDEN, id="a container with its own cgroup namespace"),
        pytest.param("0::/system.slice/docker-4f5e.scope\n", id="a container without"),
        pytest.param("1:name=systemd:/docker/4f5e\n0::/\n", id="a container, cgroup version 1"),
        pytest.param("0::/system.slice/web.service/libpod-payload-4f5e\n", id="podman in a unit"),
        pytest.param("7:memory:/system.slice/celery.service\n", id="a controller's hierarchy"),
        pytest.param("nonsense", id="not a cgroup file"),
        pytest.param(None, id="no cgroup file"),
    ],
)
def test_an_inherited_invocation_id_is_not_systemd(tmp_path: Path, cgroup: str | None) -> None:
    environ = {"INVOCATION_ID": "4f5e" * 8, "SYSTEMD_EXEC_PID": f"{PID}0"}
    found = detect(environ, root=a_root(tmp_path, cgroup=cgroup), run=must_not_run)
    assert found.source == "the fallback: no platform was recognised"


@pytest.mark.parametrize("cgroup", [HIDDEN, None])
def test_a_process_started_by_systemd_itself_has_at_least_its_default(
    tmp_path: Path, cgroup: str | None
) -> None:
    root = a_root(tmp_path, cgroup=cgroup)
    found = detect({"SYSTEMD_EXEC_PID": PID}, root=root, run=must_not_run)
    assert found == GracePeriod(90.0, "systemd's default (the unit's name is hidden)")


def test_infinity_is_the_time_after_which_a_reboot_is_forced(
    tmp_path: Path, systemctl: FakeSystemctl
) -> None:
    systemctl("TimeoutStopUSec=infinity")
    found = detect({}, root=a_root(tmp_path, cgroup=SERVICE))
    assert found.seconds == 1800
    assert "infinity" in found.source


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("Failed to connect to bus: Host is down", 1),
        ("", 0),
        ("TimeoutStopUSec=", 0),
        ("TimeoutStopUSec=0", 0),
        ("TimeoutStopUSec=0s", 0),
        ("TimeoutStopUSec=2 fortnights", 0),
        ("TimeoutStopUSec=1min -30s", 0),
        ("TimeoutStopUSec=10s", 4),
    ],
)
def test_a_useless_answer_means_the_documented_default(
    tmp_path: Path, systemctl: FakeSystemctl, answer: str, status: int
) -> None:
    systemctl(answer, status=status)
    found = detect({}, root=a_root(tmp_path, cgroup=SERVICE))
    assert found.seconds == 90
    assert found.source.startswith("systemd's default (celery.service gave none: ")


def test_no_systemctl_means_the_documented_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = detect({}, root=a_root(tmp_path, cgroup=SERVICE))
    assert found.seconds == 90
    assert "systemctl" in found.source


def test_a_systemctl_that_hangs_is_cut_off(
    tmp_path: Path, systemctl: FakeSystemctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celery_graceful.timeline.grace_period._SYSTEMCTL_TIMEOUT", 0.2)
    systemctl(body="exec /bin/sleep 60")
    found = detect({}, root=a_root(tmp_path, cgroup=SERVICE))
    assert found.seconds == 90
    assert "timed out" in found.source


@pytest.mark.parametrize(
    ("environ", "span", "seconds"),
    [
        ({"SUPERVISOR_ENABLED": "1"}, "1min 30s", 10.0),
        ({"SUPERVISOR_ENABLED": "1"}, "4s", 4.0),
        ({"HONCHO_PROCESS_NAME": "w.1"}, "infinity", 5.0),
    ],
)
def test_a_manager_in_a_systemd_unit_is_bound_by_the_smaller(
    tmp_path: Path, environ: Mapping[str, str], span: str, seconds: float
) -> None:
    root = a_root(tmp_path, cgroup=SERVICE)
    found = detect(environ, root=root, run=lambda command: f"TimeoutStopUSec={span}\n")
    assert found.seconds == seconds


# -- deadlines -------------------------------------------------------------------------------


def a_grace(seconds: float) -> GracePeriod:
    return GracePeriod(seconds, "a test")


@pytest.mark.parametrize(
    ("grace", "soft", "hard", "expected"),
    [
        (30, None, None, (20.0, 25.0)),
        (10, None, None, (5.6, 7.0)),
        (5, None, None, (2.4, 3.0)),
        (600, None, None, (400.0, 500.0)),
        (30, 1, None, (1.0, 25.0)),
        (30, None, 10, (8.0, 10.0)),
        (30, 28, 29, (28.0, 29.0)),
    ],
)
def test_deadlines(
    grace: float, soft: float | None, hard: float | None, expected: tuple[float, float]
) -> None:
    found = deadlines(a_grace(grace), soft=soft, hard=hard)
    assert (found.soft, found.hard) == pytest.approx(expected)
    assert (found.grace, found.source) == (grace, "a test")


def test_the_last_resort_lies_between_the_hard_deadline_and_the_kill() -> None:
    assert Deadlines(grace=30, soft=20, hard=25, source="").last_resort == pytest.approx(28)


@given(st.floats(min_value=0.1, max_value=86_400))
def test_deadlines_are_in_order_for_any_grace(seconds: float) -> None:
    found = deadlines(a_grace(seconds))
    assert 0 < found.soft < found.hard < found.last_resort < found.grace == seconds


@given(
    st.floats(min_value=0.1, max_value=86_400),
    st.floats(min_value=1e-3, max_value=1),
    st.floats(min_value=1e-3, max_value=1),
)
def test_deadlines_that_are_set_are_kept_or_refused(
    seconds: float, of_grace: float, of_hard: float
) -> None:
    hard = seconds * of_grace
    soft = hard * of_hard
    if 0 < soft < hard < seconds:
        found = deadlines(a_grace(seconds), soft=soft, hard=hard)
        assert (found.soft, found.hard) == (soft, hard)
    else:
        with pytest.raises(SettingsError):
            deadlines(a_grace(seconds), soft=soft, hard=hard)


@given(st.floats(min_value=0.1, max_value=86_400), st.floats(min_value=1e-3, max_value=1))
def test_a_hard_deadline_alone_moves_the_soft_one(seconds: float, of_grace: float) -> None:
    hard = seconds * of_grace
    assume(hard < seconds)
    found = deadlines(a_grace(seconds), hard=hard)
    assert 0 < found.soft < found.hard == hard


UNUSABLE = [0, -1, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize(
    ("grace", "soft", "hard", "name", "value"),
    [
        *[(bad, None, None, "graceful_grace_period", bad) for bad in UNUSABLE],
        *[(30, bad, None, "graceful_soft_deadline", bad) for bad in UNUSABLE],
        *[(30, None, bad, "graceful_hard_deadline", bad) for bad in UNUSABLE],
        pytest.param(30, None, 30, "graceful_hard_deadline", 30, id="hard at the kill"),
        pytest.param(30, None, 31, "graceful_hard_deadline", 31, id="hard after the kill"),
        pytest.param(30, 25, None, "graceful_soft_deadline", 25, id="soft at the default hard"),
        pytest.param(30, 26, None, "graceful_soft_deadline", 26, id="soft after default hard"),
        pytest.param(30, 12, 12, "graceful_soft_deadline", 12, id="soft at hard"),
        pytest.param(30, 13, 12, "graceful_soft_deadline", 13, id="soft after hard"),
        pytest.param(30, 40, 50, "graceful_hard_deadline", 50, id="all after the kill"),
    ],
)
def test_deadlines_out_of_order_are_refused_by_name(
    grace: float, soft: float | None, hard: float | None, name: str, value: float
) -> None:
    with pytest.raises(SettingsError) as caught:
        deadlines(a_grace(grace), soft=soft, hard=hard)
    assert caught.value.name == name
    assert caught.value.value == value or math.isnan(value)
    assert caught.value.mend


def test_the_mend_says_what_there_is_room_for() -> None:
    with pytest.raises(SettingsError, match=r"less than the grace period of 10 s, .* a test"):
        deadlines(a_grace(10), hard=10)
    with pytest.raises(SettingsError, match="less than graceful_hard_deadline, which is 7 s"):
        deadlines(a_grace(10), soft=8)
