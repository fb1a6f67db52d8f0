"""Findings of the doctor that are about what stands around a worker."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.concurrency.solo import TaskPool
from celery.worker.request import Request
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport.redis import Channel, Transport

from tests.support.doctor import Case, add_task, found, graceful_app, look


class Foreign:
    """Derived from none of Celery's."""


class Derived(TaskPool):
    """From one of them."""


class OwnRequest(Request):
    """Derived from Celery's."""


class OwnChannel(Channel):
    """Fetches in a way of its own."""

    def _brpop_start(self, timeout: int = 1) -> None: ...


class OwnTransport(Transport):
    Channel = OwnChannel


def app_with(**options: Any) -> Celery:
    return add_task(graceful_app(), **options)


def own_transport() -> Celery:
    TRANSPORT_ALIASES["doctors-own"] = f"{__name__}:OwnTransport"
    return graceful_app("doctors-own://127.0.0.1:1/0")


def pool(name: str) -> dict[str, Any]:
    return {"environ": {"CELERY_CUSTOM_WORKER_POOL": f"{__name__}:{name}"}}


CASES = [
    Case(
        "CG601",
        graceful_app,
        graceful_app,
        ["--command"],
        "error",
        {"command": "sh -c 'migrate && celery -A shop worker'"},
        {"command": "sh -c 'migrate && exec celery -A shop worker'"},
    ),
    Case(
        "CG603",
        graceful_app,
        graceful_app,
        ["CELERY_CUSTOM_WORKER_POOL"],
        "warning",
        pool("Foreign"),
        pool("Derived"),
    ),
    Case(
        "CG608",
        lambda: graceful_app(worker_pool="eventlets"),
        lambda: graceful_app(worker_pool="eventlet"),
        ["worker_pool"],
        "error",
    ),
    Case(
        "CG604",
        graceful_app,
        lambda: graceful_app(graceful_reliable_fetch=False),
        ["the broker's transport"],
        "warning",
    ),
    Case(
        "CG605",
        lambda: app_with(Request=f"{__name__}:OwnRequest"),
        app_with,
        ["one.Request"],
        "note",
    ),
    Case(
        "CG606",
        lambda: graceful_app(task_send_sent_event=True),
        lambda: graceful_app(task_send_sent_event=True, worker_send_task_events=True),
        ["worker_send_task_events"],
        "note",
    ),
]


def dockerfile(folder: Path, text: str) -> dict[str, Any]:
    path = folder / "Dockerfile"
    path.write_text(f"FROM python:3.13\n{text}\n")
    return {"dockerfile": path}


def test_images(tmp_path: Path) -> None:
    shell = dockerfile(tmp_path, "CMD celery -A shop worker")
    assert [one.severity.value for one in found(graceful_app(), "CG601", **shell)] == ["warning"]
    options = dockerfile(tmp_path, 'STOPSIGNAL SIGQUIT\nCMD ["celery"]')
    assert found(graceful_app(), "CG601", **options) == []
    assert [one.value for one in found(graceful_app(), "CG602", **options)] == ["SIGQUIT"]
    options = dockerfile(tmp_path, 'CMD ["celery"]')
    assert found(graceful_app(), "CG602", **options) == []
    options = dockerfile(tmp_path, 'ENTRYPOINT ["/elsewhere.sh"]')
    findings, unchecked = look(graceful_app(), "CG601", **options)
    assert findings == []
    assert list(unchecked) == [f"what {tmp_path / 'Dockerfile'} starts"]


def test_an_image_that_takes_its_entry_point_back(tmp_path: Path) -> None:
    options = dockerfile(tmp_path, 'ENTRYPOINT []\nCMD ["celery", "-A", "shop", "worker"]')
    assert found(graceful_app(), "CG601", **options) == []


def test_a_stage_that_is_built_from_another(tmp_path: Path) -> None:
    text = "FROM a AS b\nSTOPSIGNAL SIGKILL\nCMD a; celery worker\nFROM b"
    options = dockerfile(tmp_path, text)
    assert [one.severity.value for one in found(graceful_app(), "CG601", **options)] == ["error"]
    assert [one.value for one in found(graceful_app(), "CG602", **options)] == ["SIGKILL"]


@pytest.mark.parametrize(
    ("signal", "drains"),
    [
        *((name, True) for name in ("SIGTERM", "TERM", "term", "SigInt", "INT", "15", "015", "2")),
        *((name, False) for name in ("QUIT", "sigkill", "9", "3", "SIGRTMIN+3")),
        ("$SIGNAL", True),  # nobody knows
    ],
)
def test_signals_as_docker_reads_them(tmp_path: Path, signal: str, drains: bool) -> None:
    options = dockerfile(tmp_path, f'STOPSIGNAL {signal}\nCMD ["celery"]')
    values = [one.value for one in found(graceful_app(), "CG602", **options)]
    assert values == ([] if drains else [signal])


def test_a_line_that_a_shell_has_to_run() -> None:
    """Who runs it, and whom a platform signals then, the line does not say."""
    line = {"command": "python manage.py migrate && celery -A shop worker"}
    findings, unchecked = look(graceful_app(), "CG601", **line)
    assert findings == []
    assert list(unchecked) == ["what --command starts"]
    assert unchecked["what --command starts"].startswith("'&&' is for a shell")


def test_heroku_signals_all_processes(tmp_path: Path) -> None:
    heroku = {"environ": {"DYNO": "worker.1"}}
    for command in ("migrate && celery worker", "bash -c 'celery worker | tee log'"):
        assert found(graceful_app(), "CG601", command=command, **heroku) == []
    image = dockerfile(tmp_path, "CMD migrate && celery worker")
    assert found(graceful_app(), "CG601", **image, **heroku) == []


@pytest.mark.parametrize(
    ("first", "child", "expected"),
    [
        ("sh\0-c\0a; celery worker", "/bin/celery\0-A\0shop\0worker", 1),
        ("sh\0-c\0a; celery worker", "python\0-m\0celery\0worker", 1),
        ("celery\0worker", "celery\0worker", 0),
        ("sh\0-c\0tests", "pytest\0worker", 0),
    ],
)
def test_the_first_process(tmp_path: Path, first: str, child: str, expected: int) -> None:
    for pid, line in (("1", first), ("7", child)):
        (tmp_path / "proc" / pid / "task" / "1").mkdir(parents=True)
        (tmp_path / "proc" / pid / "cmdline").write_text(f"{line}\0")
    (tmp_path / "proc/1/task/1/children").write_text("7 ")
    assert len(found(graceful_app(), "CG601", root=tmp_path)) == expected


def test_a_transport_that_fetches_in_a_way_of_its_own() -> None:
    findings, _ = look(own_transport(), "CG604")
    assert ["fetches in a way of its own" in one.why for one in findings] == [True]


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "amqp://127.0.0.1:1//"])
def test_transports_that_claim_or_need_not(url: str) -> None:
    findings, _ = look(graceful_app(url), "CG604")
    assert findings == []


def test_files_of_probes(tmp_path: Path) -> None:
    def values(path: Path, **environ: str) -> list[str]:
        conf = {} if environ else {"graceful_probe_file": str(path)}
        return [one.value for one in found(graceful_app(**conf), "CG609", environ=environ)]

    assert values(tmp_path / "%n") == []
    assert values(tmp_path / "no" / "probe") == [str(tmp_path / "no" / "probe")]
    named = str(tmp_path / "no" / "other")
    assert values(tmp_path, GRACEFUL_PROBE_FILE=named) == [named]
    assert list(tmp_path.iterdir()) == [], "it leaves nothing behind"


def test_ports_of_probes() -> None:
    def values(**conf: Any) -> list[str]:
        return [one.value for one in found(graceful_app(**conf), "CG609")]

    assert values(graceful_probe_port=0) == []
    assert values(graceful_probe_host="192.0.2.1", graceful_probe_port=9) == ["192.0.2.1:9"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert values(graceful_probe_host="127.0.0.1", graceful_probe_port=port) == []
