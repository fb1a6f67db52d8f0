"""The ``graceful_*`` settings: a frozen, validated view of an app's configuration."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from celery_graceful.exceptions import SettingsError

__all__ = ["PREFIX", "Settings"]

PREFIX = "graceful_"

EXPORTERS = ("prometheus", "otel")


def _seconds(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SettingsError(name, value, "give a number of seconds, for instance 30")
    if not math.isfinite(value) or value <= 0:
        raise SettingsError(name, value, "give a finite number of seconds above zero")
    return float(value)


def _between(least: float, most: float) -> Callable[[str, Any], float]:
    def check(name: str, value: Any) -> float:
        seconds = _seconds(name, value)
        if not least <= seconds <= most:
            mend = f"give a number of seconds from {least:g} to {most:.10g}"
            raise SettingsError(name, value, mend)
        return seconds

    return check


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise SettingsError(name, value, "give True or False")
    return value


def _size(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise SettingsError(name, value, "give a number of bytes above zero, for instance 262144")
    return value


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise SettingsError(name, value, "give a whole number, for instance 3, or 0 for no limit")
    return value


def _entries(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 100 <= value <= 1_000_000:
        raise SettingsError(name, value, "give a whole number from 100 to 1000000")
    return value


def _patience(name: str, value: Any) -> float:
    if not isinstance(value, bool) and value == 0:
        return 0.0
    try:
        return _between(0.05, _YEAR)(name, value)
    except SettingsError:
        mend = "give seconds of up to a year, for instance 3600, or 0 for Celery's way: discarded"
        raise SettingsError(name, value, mend) from None


def _store_url(name: str, value: Any) -> str:
    if not isinstance(value, str) or value.partition("://")[0] not in _STORE_SCHEMES:
        mend = "give the URL of a Redis, such as redis://localhost/2"
        raise SettingsError(name, _without_password(value), mend)
    for url in value.split(";"):  # those of a Sentinel
        wrong = _wrong_in(url)
        if wrong:
            raise SettingsError(name, _without_password(value), wrong)
    return value


def _wrong_in(url: str) -> str:
    """What cannot be used of the URL of a Redis, and the mend; empty if nothing is wrong."""
    if re.search(r"\s", url):
        return "there is white space in it, take it out or write it as %20"
    if "://" not in url:
        return ""
    parts = urlsplit(url)
    if parts.scheme == "redis+socket":
        return "" if parts.path.strip("/") else "name the socket, as in redis+socket:///run/redis"
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        return (
            "the port has to be a number from 1 to 65535; write # / ? of a password as %23 %2F %3F"
        )
    if not re.fullmatch(r"/*\d*/?", parts.path):
        return f"the database has to be a number, not {parts.path.strip('/')!r}"
    return ""


def _without_password(value: Any) -> Any:
    return re.sub(r"(?<=:)[^:@/]+(?=@)", "**", value) if isinstance(value, str) else value


def _store_options(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SettingsError(name, value, "give a dict of transport options")
    if value:
        from kombu.transport.redis import SentinelChannel

        known = {*SentinelChannel.from_transport_options, "ssl"}
        for option in value:
            if option not in known:
                near = _near(str(option), known)
                mend = f", did you mean {near}" if near else f"; known are {', '.join(known)}"
                raise SettingsError(name, option, f"there is no such option{mend}")
    return value


def _names(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
        raise SettingsError(name, value, "give a list of strings")
    return tuple(value)


def _status(name: str, value: Any) -> str:
    if value not in ("ok", "error"):
        raise SettingsError(name, value, "give 'ok' or 'error', or leave it out")
    return str(value)


def _repair(name: str, value: Any) -> str:
    if value not in ("resend", "fail", "off"):
        raise SettingsError(name, value, "give 'resend', 'fail' or 'off', or leave it out")
    return str(value)


def _exporters(name: str, value: Any) -> tuple[str, ...]:
    if value not in EXPORTERS and not isinstance(value, (list, tuple)):
        raise SettingsError(name, value, f"give a list, of {', '.join(EXPORTERS)}")
    names = (value,) if isinstance(value, str) else tuple(value)
    for one in names:
        if one not in EXPORTERS:
            raise SettingsError(name, one, f"there is no such exporter, of {', '.join(EXPORTERS)}")
    return names


def _attribute(name: str, value: Any) -> str:
    if not isinstance(value, str) or not _ATTRIBUTE.fullmatch(value):
        mend = "name a CollectorRegistry as module:attribute, such as prometheus_client:REGISTRY"
        raise SettingsError(name, value, mend)
    return value


def _function(name: str, value: Any) -> Any:
    if not callable(value) and not (isinstance(value, str) and _ATTRIBUTE.fullmatch(value)):
        mend = "give a function, or name it as module:attribute, such as shop.tenants:headers"
        raise SettingsError(name, value, mend)
    return value


def _http_url(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.startswith(("http://", "https://")):
        raise SettingsError(name, value, "give a URL, such as https://hc-ping.com/<ping key>")
    return value


def _port(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65535:
        raise SettingsError(name, value, "give a number from 1 to 65535, or 0 for a free one")
    return value


def _path(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/"):
        raise SettingsError(name, value, "give the whole path of a file, such as /run/celery/%p")
    return value


def _address(name: str, value: Any) -> str:
    try:
        return str(ipaddress.ip_address(value if isinstance(value, str) else ""))
    except ValueError:
        mend = "give an address of this machine, such as 127.0.0.1, or 0.0.0.0 for all"
        raise SettingsError(name, value, mend) from None


_ATTRIBUTE = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")

_HOUR, _DAY, _YEAR = 3600, 86_400, 366 * 86_400

_STORE_SCHEMES = ("redis", "rediss", "sentinel", "redis+socket")

_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "grace_period": _between(0.001, 30 * _DAY),
    "soft_deadline": _between(0.001, 30 * _DAY),
    "hard_deadline": _between(0.001, 30 * _DAY),
    "exit_timeout": _between(0.001, _DAY),
    "default_task": _flag,
    "release_prefetched": _flag,
    "reliable_fetch": _flag,
    # What takes less than a few round trips to Redis is lost at each hiccup.
    "heartbeat_interval": _between(0.05, _HOUR),
    "rescue_interval": _between(0.05, _DAY),
    "store": _store_url,
    "store_options": _store_options,
    "checkpoint_ttl": _between(1, 10 * _YEAR),
    "checkpoint_max_bytes": _size,
    "lease_ttl": _between(0.5, _DAY),
    "poison_limit": _count,
    "poison_window": _between(1, 10 * _YEAR),
    "unknown_task_patience": _patience,
    "batch_ttl": _between(1, 10 * _YEAR),
    "batch_linger": _between(30, 10 * _YEAR),
    "batch_repair": _repair,
    "batch_missing_after": _between(0.1, 30 * _DAY),
    "batch_headers": _function,
    "track_chords": _flag,
    "probe_file": _path,
    "probe_port": _port,
    "probe_host": _address,
    "probe_stale": _between(0.5, _DAY),
    "metrics": _exporters,
    "prometheus_registry": _attribute,
    "dump_stacks": _flag,
    "history": _flag,
    "history_length": _entries,
    "history_ttl": _between(60, _YEAR),
    "monitor_beat": _flag,
    "monitor_exclude": _names,
    "monitor_on_interrupt": _status,
    "monitor_reporters": _names,
    "monitor_timeout": _between(0.01, _HOUR),
    "healthchecks_url": _http_url,
}


@dataclass(frozen=True)
class Settings:
    """What the user set. The order of the deadlines is checked where they are computed.

    Attributes:
        grace_period: Seconds between SIGTERM and SIGKILL; detected when ``None``.
        soft_deadline: Seconds after the signal at which ``ShutdownTimeLimit`` is raised.
        hard_deadline: Seconds after the signal at which what still runs is given up.
        exit_timeout: Seconds that all cleanups at the end of one process may take; in a
            worker that stops never more than the hard deadline leaves.
        default_task: Make ``GracefulTask`` the base of all of the app's tasks.
        release_prefetched: Give messages that were fetched and not started back at once
            when the worker starts to stop.
        reliable_fetch: On Redis, record what is fetched in the same step, as claims of the
            worker.
        heartbeat_interval: Seconds between two heartbeats of a worker; a quarter of a lease that
            is shorter than usual.
        lease_ttl: Seconds after its last heartbeat at which a worker is taken for dead.
        rescue_interval: Seconds between two looks for dead workers; a fifth of a lease that
            is shorter than usual.
        store: URL of the Redis for checkpoints; ``None`` for the broker or the result
            backend, whichever is Redis.
        store_options: Transport options for ``store``, such as ``master_name``,
            ``global_keyprefix`` and ``ssl``.
        checkpoint_ttl: Seconds after its last save at which a checkpoint expires.
        checkpoint_max_bytes: The most that one saved value may take.
        poison_limit: At which death of the process that runs it a task goes to quarantine;
            0 for never.
        poison_window: Seconds in which deaths are counted together.
        unknown_task_patience: Seconds for which a message waits for a worker that knows its task,
            before it goes to quarantine; 0 to discard it at once, as Celery does.
        batch_ttl: Seconds after the last end of a member at which a batch is forgotten.
        batch_linger: Seconds for which a batch that has ended is remembered.
        batch_repair: What workers do about missing members: ``"resend"`` them, have them
            ``"fail"``, or nothing, ``"off"``; ``None``: resend those whose tasks are graceful.
        batch_missing_after: Seconds in which a batch that stands still has what is missing listed.
        batch_headers: A function, or its name as ``module:attribute``: headers that members and
            callbacks have, whoever sends them; asked where a batch is sent.
        track_chords: Keep the ledger of batches for native groups and chords as well.
        probe_file: A file that a worker touches for as long as it lives, for probes. ``%p`` stands
            for its name, ``%n`` for that without the host, ``%h`` for the host, as in Celery.
            ``None``: the one that ``GRACEFUL_PROBE_FILE`` names in the environment, or none.
        probe_port: Where a worker answers probes by HTTP; 0 for a free port, ``None`` for nowhere.
        probe_host: At which address.
        probe_stale: Seconds after which a worker whose event loop has not turned is not live.
        metrics: Who is shown the numbers of a worker: ``"prometheus"``, ``"otel"``, or both.
        prometheus_registry: The registry that they are in, as ``module:attribute``; ``None``: one
            of their own, served as ``/metrics`` at ``probe_port``.
        dump_stacks: Write into the log where tasks stand that are about to be given up.
        history: Keep a journal of the unusual moments of tasks.
        history_length: Entries that are kept of all tasks together, about.
        history_ttl: Seconds after the last entry at which a history is forgotten.
        monitor_beat: Report the runs of all beat entries to monitors of the same names.
        monitor_exclude: Patterns (``fnmatch``) of beat entries that are not to be reported.
        monitor_on_interrupt: What an interrupted run's check-in is closed as, ``"ok"`` or
            ``"error"``; ``None`` leaves it open, for the run goes on.
        monitor_reporters: Who reports; ``None``: ``sentry`` if a client is active, and
            ``healthchecks`` if ``healthchecks_url`` is set.
        monitor_timeout: Seconds that one report may take, and a task may wait for it.
        healthchecks_url: Where to ping: the URL with the ping key, without a slug.
    """

    grace_period: float | None = None
    soft_deadline: float | None = None
    hard_deadline: float | None = None
    exit_timeout: float = 5.0
    default_task: bool = False
    release_prefetched: bool = True
    reliable_fetch: bool = True
    heartbeat_interval: float = 2.5
    rescue_interval: float = 2.0
    store: str | None = None
    store_options: Mapping[str, Any] = field(default_factory=dict)
    checkpoint_ttl: float = 30 * 86400.0
    checkpoint_max_bytes: int = 256 * 1024
    lease_ttl: float = 10.0
    poison_limit: int = 3
    poison_window: float = 72 * 3600.0
    unknown_task_patience: float = 3600.0
    batch_ttl: float = 30 * 86400.0
    batch_linger: float = 86400.0
    batch_repair: str | None = None
    batch_missing_after: float = 60.0
    batch_headers: Callable[..., Any] | str | None = None
    track_chords: bool = False
    probe_file: str | None = None
    probe_port: int | None = None
    probe_host: str = "127.0.0.1"
    probe_stale: float = 60.0
    metrics: tuple[str, ...] = ()
    prometheus_registry: str | None = None
    dump_stacks: bool = True
    history: bool = True
    history_length: int = 10_000
    history_ttl: float = 7 * 86400.0
    monitor_beat: bool = False
    monitor_exclude: tuple[str, ...] = ()
    monitor_on_interrupt: str | None = None
    monitor_reporters: tuple[str, ...] | None = None
    monitor_timeout: float = 2.0
    healthchecks_url: str | None = None

    @classmethod
    def from_conf(cls, conf: Mapping[str, Any]) -> Settings:
        """Read and check every ``graceful_*`` name of a Celery configuration.

        Args:
            conf: ``app.conf``, with or without a namespace such as ``CELERY``.

        Raises:
            SettingsError: Names are unknown, or values have the wrong type or range. It
                names each setting, its value and the mend.
        """
        conf = getattr(conf, "data", conf)  # one that Celery has not read yet reads itself now
        known = [one.name for one in fields(cls)]
        wrong = []
        for key, name in _names_set(conf):
            if name not in known:
                wrong.append(SettingsError(key, conf[key], _nearest(conf, name, known)))
            elif key not in (PREFIX + name, _spelled(conf, name)):
                mend = f"Celery does not read it, write {_spelled(conf, name)}"
                wrong.append(SettingsError(key, conf[key], mend))
        values = {}
        for name in known:
            value = conf.get(PREFIX + name)
            if value is not None:
                try:
                    values[name] = _CHECKS[name](_spelled(conf, name), value)
                except SettingsError as exc:
                    wrong.append(exc)
        SettingsError.raise_all(wrong)
        if "lease_ttl" in values:
            for name, share in (("rescue_interval", 5), ("heartbeat_interval", 4)):
                values.setdefault(name, min(getattr(cls, name), values["lease_ttl"] / share))
        settings = cls(**values)
        SettingsError.raise_all([*settings._unfit_together(conf)])
        return settings

    def _unfit_together(self, conf: Mapping[str, Any]) -> Iterator[SettingsError]:
        nowhere = self.probe_port is None and self.prometheus_registry is None
        if "prometheus" in self.metrics and nowhere:
            port, registry = (_spelled(conf, n) for n in ("probe_port", "prometheus_registry"))
            mend = f"set {port} as well, where /metrics is, or {registry} if you serve that"
            yield SettingsError(_spelled(conf, "metrics"), self.metrics, mend)
        beat, lease, rescue = (
            _spelled(conf, name) for name in ("heartbeat_interval", "lease_ttl", "rescue_interval")
        )
        rescued = self.lease_ttl + self.rescue_interval
        together = f"{lease} and {rescue} together"
        for name, least, why in (
            ("lease_ttl", 2 * self.heartbeat_interval, f"two heartbeats ({beat})"),
            ("checkpoint_ttl", rescued, f"{together}, or a rescue comes too late"),
            ("batch_ttl", rescued, f"{together}, or a rescue comes too late"),
            ("poison_window", rescued, f"{together}, or no two deaths are in it"),
        ):
            if getattr(self, name) < least:
                mend = f"give at least {least:g} s: {why}"
                yield SettingsError(_spelled(conf, name), getattr(self, name), mend)


def _namespace(conf: Mapping[str, Any]) -> str:
    """``CELERY_``, or nothing."""
    return getattr(conf, "prefix", None) or ""


def _spelled(conf: Mapping[str, Any], name: str) -> str:
    """How the user writes the setting ``name``."""
    namespace = _namespace(conf)
    return f"{namespace}{PREFIX}{name}".upper() if namespace else PREFIX + name


def _names_set(conf: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each key of ``conf`` that is ours, as written and without case, namespace and prefix."""
    namespace = _namespace(conf).lower()
    known = {field.name for field in fields(Settings)}
    for key in list(conf):
        if not isinstance(key, str):
            continue
        head, found, name = key.lower().partition(PREFIX)
        if not found or head not in ("", namespace):
            continue
        # Beside a namespace, other people's settings live: GRACEFUL_EXIT of a Django project.
        if head == namespace or key.startswith(PREFIX) or name in known:
            yield key, name


def _nearest(conf: Mapping[str, Any], name: str, known: Collection[str]) -> str:
    near = _near(name, known)
    if near:
        return f"there is no such setting, did you mean {_spelled(conf, near)}"
    names = ", ".join(_spelled(conf, k) for k in sorted(known))
    return f"there is no such setting; known are {names}"


def _near(name: str, known: Collection[str]) -> str:
    """The one of ``known`` that was meant; empty if none is like it."""
    import difflib  # only for those who have mistyped

    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.4)), "")
