"""The platform's grace period, where it was read, and the deadlines that follow from it.

What an operator says wins: ``GRACEFUL_GRACE_PERIOD``, then
``TERMINATION_GRACE_PERIOD_SECONDS`` in the environment. Otherwise **the smallest bound of
everything recognised counts**, because whoever loses patience first sends the SIGKILL:
supervisord's 10 s in a pod with 30 s, foreman's 5 s in a dyno. A wrong small bound costs
time; a wrong large one costs the tasks. The platforms' own limits cannot be read from inside
(systemd's can), so these are their documented defaults; who changes one at the platform sets
one of the two variables as well::

    bound        s   recognised by                  source
    -----------  --  -----------------------------  --------------------------------------------
    supervisord  10  SUPERVISOR_ENABLED             stopwaitsecs
                 https://supervisord.org/configuration.html
    honcho        5  HONCHO_PROCESS_NAME            KILL_WAIT in honcho/manager.py
                 https://github.com/nickstenning/honcho
    foreman       5  PS and PORT                    foreman(1), --timeout
                 https://ddollar.github.io/foreman/
    Heroku       30  DYNO                           Dyno Shutdown Behavior
                 https://devcenter.heroku.com/articles/dyno-shutdown-behavior
    Amazon ECS   30  ECS_CONTAINER_METADATA_URI,    ContainerDefinition, stopTimeout
                     ECS_CONTAINER_METADATA_URI_V4  (the same on Fargate and EC2)
                 https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_ContainerDefinition.html
    Kubernetes   30  KUBERNETES_SERVICE_HOST        Pod Lifecycle, Termination of Pods
                 https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/
    Cloud Run    10  K_SERVICE, CLOUD_RUN_JOB,      Container runtime contract
                     CLOUD_RUN_WORKER_POOL          (the same for all three kinds)
                 https://cloud.google.com/run/docs/container-contract
    Fly.io        5  FLY_APP_NAME                   App configuration, kill_timeout
                 https://fly.io/docs/reference/configuration/
    Render       30  RENDER                         API reference, maxShutdownDelaySeconds
                 https://api-docs.render.com/
    Docker       10  /.dockerenv                    docker container stop
                 https://docs.docker.com/reference/cli/docker/container/stop/
    systemd      90  /proc/self/cgroup              systemd-system.conf(5), DefaultTimeoutStopSec
                 https://www.freedesktop.org/software/systemd/man/latest/systemd-system.conf.html

* Docker's mark is found in containers of many platforms, so it counts only where none of the
  platforms between Heroku and Render is recognised.
* On Kubernetes a ``preStop`` hook runs inside the grace period. Knative sets ``K_SERVICE``
  too and is taken for Cloud Run, which errs on the safe side.
* Fly.io sends SIGINT, not SIGTERM, unless ``kill_signal`` says otherwise.

systemd's own answer is asked for (``TimeoutStopUSec``). What makes a process part of a unit
is its cgroup: stopping the unit kills what is in there. So the cgroup decides, and its last
part must be a ``.service``. ``INVOCATION_ID`` decides nothing, since shells of a user session
and containers can inherit it: a session's cgroup is a ``.scope``, a container's is a
``.scope``, a bare id or hidden behind ``/``. Where no service is named, only a
``SYSTEMD_EXEC_PID`` that is our own pid (systemd started this very process) means systemd.

If systemd cannot be asked, its default counts; some distributions lower it (Fedora: 45 s).
``infinity`` counts as 30 min: systemd never kills then, except that it forces a reboot that
takes longer (``JobTimeoutSec=30min`` in its ``reboot.target``).
"""

from __future__ import annotations

import math
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from celery_graceful.exceptions import SettingsError
from celery_graceful.settings import Settings

__all__ = [
    "TOLD",
    "Deadlines",
    "GracePeriod",
    "deadlines",
    "deadlines_of",
    "detect",
    "superseded",
]

Run: TypeAlias = Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class GracePeriod:
    """What the platform gives between its stop signal and SIGKILL.

    Attributes:
        seconds: Its length in seconds.
        source: Where it was read, for people: "Heroku's default (DYNO is set)".
        assumed_of: Whose default that is, where somebody may have set another one. Docker's mark
            says little: it is found where nobody ever stops a worker, too.
        is_said: The platform, or an operator for it, has said so; it is no default.
    """

    seconds: float
    source: str
    assumed_of: str = field(default="", compare=False)
    is_said: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Deadlines:
    """The moments of a stop, all in seconds after the signal.

    Attributes:
        grace: SIGKILL is due.
        soft: Tasks that still run get ``ShutdownTimeLimit``.
        hard: What still runs is taken away.
        source: Where the grace period was read, for people.
    """

    grace: float
    soft: float
    hard: float
    source: str

    @property
    def last_resort(self) -> float:
        """Seconds after the signal at which the process leaves, whatever is still open."""
        return self.hard + 0.6 * (self.grace - self.hard)


class _Bound(NamedTuple):
    """One row of the table above: present when all of ``marks`` are.

    A mark is an environment variable, or with a leading slash a file.
    """

    owner: str
    seconds: float
    marks: tuple[str, ...]


#: What a worker is told to count on, whatever its platform gives.
TOLD = "GRACEFUL_GRACE_PERIOD"

_VARIABLES = (TOLD, "TERMINATION_GRACE_PERIOD_SECONDS")

# Process managers: they kill their children, whatever surrounds them.
_MANAGERS = (
    _Bound("supervisord", 10, ("SUPERVISOR_ENABLED",)),
    _Bound("honcho", 5, ("HONCHO_PROCESS_NAME",)),
    _Bound("foreman", 5, ("PS", "PORT")),
)
_PLATFORMS = (
    _Bound("Heroku", 30, ("DYNO",)),
    _Bound("Amazon ECS", 30, ("ECS_CONTAINER_METADATA_URI_V4",)),
    _Bound("Amazon ECS", 30, ("ECS_CONTAINER_METADATA_URI",)),
    _Bound("Kubernetes", 30, ("KUBERNETES_SERVICE_HOST",)),
    _Bound("Cloud Run", 10, ("K_SERVICE",)),
    _Bound("Cloud Run", 10, ("CLOUD_RUN_JOB",)),
    _Bound("Cloud Run", 10, ("CLOUD_RUN_WORKER_POOL",)),
    _Bound("Fly.io", 5, ("FLY_APP_NAME",)),
    _Bound("Render", 30, ("RENDER",)),
)
_CONTAINERS = (_Bound("Docker", 10, ("/.dockerenv",)),)

#: No platform waits for longer.
LONGEST = 30 * 86_400

_UNRECOGNISED = GracePeriod(30.0, "the fallback: no platform was recognised")

_SYSTEMD_DEFAULT = 90.0
_SYSTEMD_FORCED_REBOOT = 1800.0
_SYSTEMCTL_TIMEOUT = 2.0

_OWN_UNIT = re.compile(
    r"^\d+:(?:name=systemd)?:(?P<parents>.*)/_?(?P<name>[^/]+\.service)$", re.MULTILINE
)
_SPAN_UNITS = {
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86_400.0,
    "w": 604_800.0,
    "month": 2_629_800.0,
    "y": 31_557_600.0,
}
_SPAN = re.compile(rf"(\d+(?:\.\d+)?)({'|'.join(_SPAN_UNITS)})")


def _output_of(command: Sequence[str]) -> str:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_SYSTEMCTL_TIMEOUT,
        check=True,
        encoding="utf-8",
        errors="replace",
    )
    return done.stdout


def detect(
    environ: Mapping[str, str] | None = None,
    *,
    root: Path = Path("/"),
    run: Run = _output_of,
) -> GracePeriod:
    """Find the grace period of the platform that this process runs on.

    Starts at most one process (``systemctl show``, cut off after 2 seconds), and that only in
    a systemd service.

    Args:
        environ: Environment to look at; that of this process when ``None``.
        root: Directory under which ``/.dockerenv`` and ``/proc/self/cgroup`` are looked up.
        run: Runs a command and returns what it printed; raises ``OSError`` or
            ``subprocess.SubprocessError`` when it fails.

    Returns:
        The grace period in seconds, and where it was read.

    Raises:
        SettingsError: ``GRACEFUL_GRACE_PERIOD`` or ``TERMINATION_GRACE_PERIOD_SECONDS`` is
            set to something else than a positive, finite number of seconds.
    """
    environ = os.environ if environ is None else environ
    for name in _VARIABLES:
        if environ.get(name, "").strip():  # empty is how many a template says "not set"
            source = f"{name}={environ[name]} in the environment"
            return GracePeriod(_seconds(name, environ[name]), source, is_said=True)
    bounds = [
        *_present(_MANAGERS, environ, root),
        *(list(_present(_PLATFORMS, environ, root)) or _present(_CONTAINERS, environ, root)),
        *_systemd(environ, root, run),
    ]
    return min(bounds, key=lambda bound: bound.seconds, default=_UNRECOGNISED)


def deadlines(
    grace: GracePeriod, *, soft: float | None = None, hard: float | None = None
) -> Deadlines:
    """Compute when a stopping worker gets stricter.

    With ``g`` seconds of grace the hard deadline is ``g - max(g/6, min(3, 0.4 g))`` and the
    soft one 0.8 of the hard one: 30 s gives 20 and 25, 10 s gives 5.6 and 7, 5 s gives 2.4
    and 3.

    Args:
        grace: What the platform gives.
        soft: ``graceful_soft_deadline``, in seconds after the signal.
        hard: ``graceful_hard_deadline``, in seconds after the signal.

    Returns:
        The deadlines, with ``0 < soft < hard < grace``.

    Raises:
        SettingsError: A value is not a positive, finite number of seconds, or the order above
            does not hold. It names the setting, the value and the mend.
    """
    end = _seconds("graceful_grace_period", grace.seconds)
    hard = _default_hard(end) if hard is None else _seconds("graceful_hard_deadline", hard)
    if hard >= end:
        mend = f"give less than the grace period of {end:g} s, which is {grace.source}"
        raise SettingsError("graceful_hard_deadline", hard, mend)
    soft = 0.8 * hard if soft is None else _seconds("graceful_soft_deadline", soft)
    if soft >= hard:
        mend = f"give less than graceful_hard_deadline, which is {hard:g} s"
        raise SettingsError("graceful_soft_deadline", soft, mend)
    return Deadlines(grace=end, soft=soft, hard=hard, source=grace.source)


def deadlines_of(
    settings: Settings, detected: Callable[[], GracePeriod] = detect
) -> tuple[GracePeriod, Deadlines]:
    """The grace period of a worker with these settings, and its deadlines.

    Args:
        settings: What the user set.
        detected: Finds the platform's grace period, where the user has set none.

    Raises:
        SettingsError: As for ``detect`` and ``deadlines``.
    """
    if settings.grace_period is None:
        grace = detected()
    else:
        grace = GracePeriod(settings.grace_period, "graceful_grace_period")
    return grace, deadlines(grace, soft=settings.soft_deadline, hard=settings.hard_deadline)


def superseded(conf: Any) -> list[tuple[str, Any]]:
    """Celery's own ways to a quicker or softer stop that are set, and have no effect."""
    from billiard.common import REMAP_SIGTERM

    ways = [("REMAP_SIGTERM", REMAP_SIGTERM)]
    ways.append(("worker_soft_shutdown_timeout", conf.get("worker_soft_shutdown_timeout")))
    return [(name, value) for name, value in ways if value]


def _default_hard(grace: float) -> float:
    return grace - max(grace / 6, min(3.0, 0.4 * grace))


def _seconds(name: str, value: float | str) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not math.isfinite(seconds) or seconds <= 0:
        raise SettingsError(name, value, "give a finite number of seconds above zero, such as 30")
    if seconds > LONGEST:
        raise SettingsError(name, value, f"give {LONGEST:.0f} seconds at most, which are 30 days")
    return seconds


def _present(
    bounds: Sequence[_Bound], environ: Mapping[str, str], root: Path
) -> Iterator[GracePeriod]:
    for owner, seconds, marks in bounds:
        if all(_is_there(mark, environ, root) for mark in marks):
            assumed_of = "" if marks[0].startswith("/") else owner
            yield GracePeriod(float(seconds), f"{owner}'s default ({_because(marks)})", assumed_of)


def _is_there(mark: str, environ: Mapping[str, str], root: Path) -> bool:
    if mark.startswith("/"):
        return (root / mark[1:]).exists()
    return bool(environ.get(mark))


def _because(marks: Sequence[str]) -> str:
    if marks[0].startswith("/"):
        return f"{marks[0]} exists"
    return f"{' and '.join(marks)} {'is' if len(marks) == 1 else 'are'} set"


def _systemd(environ: Mapping[str, str], root: Path, run: Run) -> Iterator[GracePeriod]:
    """The bound of our own systemd service, if we are part of one."""
    unit = _own_unit(root)
    if unit is not None:
        yield _ask_systemd(unit["name"], run, user="/user@" in unit["parents"])
    elif environ.get("SYSTEMD_EXEC_PID") == str(os.getpid()):
        yield GracePeriod(_SYSTEMD_DEFAULT, "systemd's default (the unit's name is hidden)")


def _own_unit(root: Path) -> re.Match[str] | None:
    try:
        cgroups = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return _OWN_UNIT.search(cgroups)


def _ask_systemd(unit: str, run: Run, *, user: bool) -> GracePeriod:
    manager = ["--user"] if user else []
    try:
        answer = run(["systemctl", *manager, "show", "-p", "TimeoutStopUSec", "--", unit])
        span = answer.strip().removeprefix("TimeoutStopUSec=")
        seconds = _parse_span(span)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return GracePeriod(_SYSTEMD_DEFAULT, f"systemd's default ({unit} gave none: {error})")
    if math.isinf(seconds):
        source = f"systemd's limit for a reboot (TimeoutStopUSec of {unit} is infinity)"
        return GracePeriod(_SYSTEMD_FORCED_REBOOT, source)
    source = f"systemd (TimeoutStopUSec of {unit} is {span})"
    return GracePeriod(seconds, source, is_said=True)


def _parse_span(text: str) -> float:
    """Seconds in a time span as systemd prints it, such as ``1min 30s`` or ``infinity``.

    Raises:
        ValueError: It is something else, or zero.
    """
    if text == "infinity":
        return math.inf
    seconds = 0.0
    for part in text.split():
        match = _SPAN.fullmatch(part)
        if match is None:
            raise ValueError(f"{text!r} is no time span")
        seconds += float(match[1]) * _SPAN_UNITS[match[2]]
    if seconds <= 0:
        raise ValueError(f"{text!r} is no time to stop in")
    return seconds
