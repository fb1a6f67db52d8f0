"""What the manifests in `examples/deploy/` have a platform start, and how it stops that."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from celery_graceful.doctor.entry_point import read_dockerfile
from tests.support.workers import ROOT

__all__ = ["DEPLOY", "READERS", "Started"]

DEPLOY = ROOT / "examples" / "deploy"


@dataclass(frozen=True)
class Started:
    """A worker of a platform.

    Attributes:
        argv: Its command line.
        env: What the manifest puts into its environment.
        grace: Seconds between the stop signal and SIGKILL.
        platform: What the platform itself puts into the environment.
        signal: That stops it.
        to_group: The signal goes to its children as well.
        probes: Commands that the platform asks it by.
        asks: The worker asks the platform for its grace period, which is not here.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    grace: float
    platform: Mapping[str, str] = field(default_factory=dict)
    signal: str = "SIGTERM"
    to_group: bool = False
    probes: Sequence[Sequence[str]] = ()
    asks: bool = False


def _text(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def _named(variables: Sequence[Mapping[str, str]]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in variables}


def _unit(name: str) -> configparser.ConfigParser:
    """A file of sections; what stands behind ``%`` is left to who reads it."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(_text(name))
    return parser


def _asked(test: Sequence[str]) -> Sequence[str]:
    """The command of a health check of Docker's."""
    assert test[0] == "CMD"  # and no shell
    return test[1:]


def kubernetes() -> Started:
    spec = yaml.safe_load(_text("kubernetes.yaml"))["spec"]["template"]["spec"]
    (worker,) = spec["containers"]
    hook = worker.get("lifecycle", {}).get("preStop", {}).get("sleep", {"seconds": 0})
    return Started(
        argv=[*worker["command"], *worker.get("args", [])],
        env=_named(worker["env"]),
        grace=spec["terminationGracePeriodSeconds"] - hook["seconds"],
        platform={"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        probes=[worker[f"{kind}Probe"]["exec"]["command"] for kind in ("liveness", "readiness")],
    )


def systemd() -> Started:
    service = _unit("worker.service")["Service"]
    assert (service["Type"], service["KillMode"]) == ("notify", "mixed")
    return Started(
        argv=shlex.split(service["ExecStart"]),
        env=dict(one.split("=", 1) for one in shlex.split(service["Environment"])),
        grace=float(service["TimeoutStopSec"]),
        platform={"WATCHDOG_USEC": f"{service['WatchdogSec']}000000"},
        asks=True,
    )


def compose() -> Started:
    worker = yaml.safe_load(_text("compose.yaml"))["services"]["worker"]
    found = re.fullmatch(r"(\d+)s", worker["stop_grace_period"])
    assert found is not None
    return Started(
        argv=worker["command"],
        env=worker["environment"],
        grace=float(found[1]),
        probes=[_asked(worker["healthcheck"]["test"])],
    )


def supervisord() -> Started:
    program = _unit("supervisord.conf")["program:shop-worker"]
    assert (program["stopasgroup"], program["killasgroup"]) == ("false", "true")
    command = program["command"] % {"program_name": "shop-worker"}
    return Started(
        argv=shlex.split(command),
        env=dict(re.findall(r'(\w+)="([^"]*)"', program["environment"])),
        grace=float(program["stopwaitsecs"]),
        platform={"SUPERVISOR_ENABLED": "1"},
        signal=f"SIG{program['stopsignal']}",
    )


def heroku() -> Started:
    name, _, command = _text("Procfile").strip().partition(": ")
    # Nobody can say how long it waits; all processes of a dyno are signalled.
    return Started(shlex.split(command), {}, 30, {"DYNO": f"{name}.1"}, to_group=True)


def ecs() -> Started:
    task = json.loads(_text("ecs.json"))
    (worker,) = task["containerDefinitions"]
    assert task["requiresCompatibilities"] == ["FARGATE"]
    assert worker["stopTimeout"] <= 120  # Fargate waits no longer
    uri = {"ECS_CONTAINER_METADATA_URI_V4": "http://169.254.170.2/v4/0"}
    return Started(
        argv=worker["command"],
        env=_named(worker["environment"]),
        grace=worker["stopTimeout"],
        platform=uri,
        probes=[_asked(worker["healthCheck"]["command"])],
    )


def cloud_run() -> Started:
    pool = yaml.safe_load(_text("cloud-run.yaml"))
    (worker,) = pool["spec"]["template"]["spec"]["containers"]
    # Nobody can say how long it waits.
    name = {"CLOUD_RUN_WORKER_POOL": pool["metadata"]["name"]}
    return Started([*worker["command"], *worker["args"]], _named(worker["env"]), 10, name)


def fly() -> Started:
    toml: Any = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    config = toml.loads(_text("fly.toml"))
    assert config["kill_timeout"] <= 300  # Fly.io waits no longer
    return Started(
        argv=shlex.split(config["processes"]["worker"]),
        env=config["env"],
        grace=config["kill_timeout"],
        platform={"FLY_APP_NAME": config["app"]},
        signal=config["kill_signal"],
    )


def docker() -> Started:
    """The image itself, by ``docker run`` and ``docker stop``: whatever the manifests leave."""
    image = read_dockerfile(Path(DEPLOY / "Dockerfile"))
    return Started(image.argv, {"GRACEFUL_GRACE_PERIOD": "10"}, 10, signal=image.stop_signal)


READERS = (kubernetes, systemd, compose, supervisord, heroku, ecs, cloud_run, fly, docker)
