"""Runs Celery's own tests twice, and prints those whose outcome the package changes.

They are those of the source distribution of the Celery that is installed, from PyPI. Unit tests are
run with every app made graceful; integration tests, embedded and against a worker of its own, with
every task graceful as well. Those of chords are also run with `graceful_track_chords` and without.
A difference that is not in `known.py` is a failure.

SUITES=quick: the quickest third, for CI. SUITES=chords: those of chords, on both brokers. It may
also be the name of one, as it is printed: SUITES="chords, gevent, rabbitmq".
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import celery
import pytest

from tests.servers import RabbitServer, RedisServer
from tests.suites.known import reason_of
from tests.support.workers import ROOT, Worker

#: Where the distributions are kept, and the log of each suite.
KEPT = ROOT / ".suites"

#: Seconds that a suite may take one way. Celery's integration tests take a quarter of an hour, by
#: waits of theirs; one that hangs adds the five minutes of their own limit.
TIMEOUT = 5400

#: How many are run beside one another: they wait more than they compute.
BESIDE = 4

UNIT = ("t/unit/worker", "t/unit/tasks", "t/unit/app")
INTEGRATION = ("t/integration",)
CANVAS = ("t/integration/test_canvas.py",)
QUICK_UNIT = ("t/unit/worker",)
QUICK_INTEGRATION = ("t/integration/test_inspect.py",)


@dataclass(frozen=True)
class Suite:
    """Some of Celery's tests, and what they are run against."""

    name: str
    tests: tuple[str, ...]
    broker: str = ""
    #: Pool of the worker beside the tests; without one it is embedded.
    pool: str = ""
    #: What is compared: what is plain in each run, and what is made graceful.
    modes: tuple[tuple[str, str], ...] = (("plain", ""), ("graceful", "all"))


QUICK = (
    Suite("unit", QUICK_UNIT, modes=(("plain", ""), ("graceful", "apps"))),
    Suite("embedded, Redis", QUICK_INTEGRATION, "redis"),
)
#: What differs is whether chords are tracked.
TRACKED = (("untracked", "all"), ("tracked", "chords"))
CHORDS = tuple(
    Suite(f"chords, {pool or 'embedded'}, {broker}", CANVAS, broker, pool, TRACKED)
    for broker in ("redis", "rabbitmq")
    for pool in ("", "prefork", "threads", "gevent")
)
ALL = (
    Suite("unit", UNIT, modes=(("plain", ""), ("graceful", "apps"))),
    *(
        Suite(f"{pool or 'embedded'}, {broker}", INTEGRATION, broker, pool)
        for broker in ("redis", "rabbitmq")
        for pool in ("", "prefork", "threads")
    ),
    *(suite for suite in CHORDS if suite.broker == "redis"),
)


def fetch() -> Path:
    """The folder with Celery's tests, of the version that is installed."""
    folder = KEPT / f"celery-{celery.__version__}"
    if not folder.exists():
        KEPT.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=KEPT) as temporary:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            wanted = ["--no-binary", "celery", f"celery=={celery.__version__}"]
            subprocess.run([*pip, *wanted, "--dest", temporary], check=True)
            (archive,) = Path(temporary).glob("celery-*.tar.gz")
            with tarfile.open(archive) as file:
                inside = f"celery-{celery.__version__}/"
                # Not the package itself: the one that is installed is tested.
                wanted_files = [
                    each
                    for each in file.getmembers()
                    if each.name.startswith((f"{inside}t/", f"{inside}pyproject.toml"))
                ]
                file.extractall(temporary, wanted_files)
            (Path(temporary) / inside).rename(folder)
    return folder


@contextmanager
def servers(broker: str) -> Iterator[dict[str, str]]:
    """The environment of tests that need them."""
    with ExitStack() as stack:
        if not broker:
            yield {}
            return
        redis = stack.enter_context(RedisServer())
        backend = redis.url(0)
        env = {"TEST_BACKEND": backend, "TEST_BROKER": redis.url(1)}
        env.update(REDIS_HOST="127.0.0.1", REDIS_PORT=str(redis.port))
        if broker == "rabbitmq":
            rabbit = stack.enter_context(RabbitServer())
            env["TEST_BROKER"] = rabbit.url(rabbit.vhost())
        yield env


class NoOutcome(Exception):
    """A suite has come to no end, and why."""


def run(suite: Suite, folder: Path, graceful: str) -> dict[str, str]:
    """Run a suite; the outcomes of its tests.

    Raises:
        NoOutcome: It has taken more than ``TIMEOUT``, has run no test, or has broken off.
    """
    with servers(suite.broker) as env, tempfile.TemporaryDirectory() as temporary:
        outcomes = Path(temporary) / "outcomes"
        env = {**os.environ, **env, "GRACEFUL": graceful, "OUTCOMES": str(outcomes)}
        env["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT)])
        argv = [sys.executable, "-m", "pytest", "-q", "-p", "celery.contrib.pytest"]
        argv += ["--continue-on-collection-errors"]  # of brokers whose clients are not here
        argv += ["-p", "tests.suites.plugin", "-p", "no:cacheprovider", "--no-header", "--tb=no"]
        # One worker for all of them, and parameters that Celery's tests use up in their order.
        argv += ["-p", "no:xdist"]
        with ExitStack() as stack:
            if suite.pool:
                env["OWN_WORKER"] = "beside@suites"
                stack.enter_context(beside(suite.pool, env))
            KEPT.mkdir(exist_ok=True)
            log = KEPT / f"{suite.name}, {graceful or 'plain'}.log"
            with log.open("wb") as said:
                try:
                    code = subprocess.run(
                        [*argv, *suite.tests],
                        cwd=folder,
                        env=env,
                        stdout=said,
                        stderr=said,
                        stdin=subprocess.DEVNULL,
                        timeout=TIMEOUT,
                        check=False,
                    ).returncode
                except subprocess.TimeoutExpired:
                    raise NoOutcome(f"has not ended within {TIMEOUT} s") from None
        found: dict[str, str] = json.loads(outcomes.read_text()) if outcomes.exists() else {}
        if not found:
            raise NoOutcome(f"has run no test:\n{log.read_text(errors='replace')[-5000:]}")
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise NoOutcome(f"has broken off after {len(found)} tests with code {code}: see {log}")
        return found


class Beside(Worker):
    """A worker of its own for the tests, whose log nobody asks for."""

    def __exit__(self, *exc_info: object) -> None:
        self.kill()


@contextmanager
def beside(pool: str, env: Mapping[str, str]) -> Iterator[None]:
    """A worker for the tests; when it has died another one, without the message of which it did.

    As a plain one does of what it cannot unpack: tests without a limit wait for it for ever.
    """

    def start(*args: str) -> Beside:
        options = {"pool": pool, "env": env, "hostname": "beside@suites", "args": args}
        return stack.enter_context(Beside("tests.suites.worker_app", **options))

    def keep(worker: Beside) -> None:
        while not over.wait(1.0):
            if worker.process.poll() is not None:
                worker = start("--purge")

    over = threading.Event()
    with ExitStack() as stack:
        keeper = threading.Thread(target=keep, args=[start().ready()])
        keeper.start()
        stack.callback(keeper.join)
        stack.callback(over.set)
        yield


def main() -> int:
    known = {suite.name: (suite,) for suite in (*ALL, *CHORDS)}
    known |= {"": ALL, "quick": QUICK, "chords": CHORDS}
    wanted = os.environ.get("SUITES", "")
    if wanted not in known:
        names = ", ".join(f'"{name}"' for name in known if name)
        print(f'SUITES="{wanted}" is none of {names}', file=sys.stderr)
        return 2
    folder, suites = fetch(), known[wanted]
    with ThreadPoolExecutor(BESIDE) as pool:
        begun = [
            (suite, [pool.submit(timed, suite, folder, how) for _, how in suite.modes])
            for suite in suites
        ]
        failed = [suite.name for suite, runs in begun if not passes(suite, runs)]
    return int(bool(failed))


def timed(suite: Suite, folder: Path, graceful: str) -> tuple[dict[str, str], float]:
    """What `run` gives, and how many seconds it took."""
    began = time.monotonic()
    return run(suite, folder, graceful), time.monotonic() - began


def passes(suite: Suite, runs: list[Future[tuple[dict[str, str], float]]]) -> bool:
    """Print what differs between both ways; whether there is a reason for all of it."""
    found: dict[str, dict[str, str]] = {}
    seconds = 0.0
    for (name, _), each in zip(suite.modes, runs, strict=True):
        try:
            found[name], took = each.result()
        except NoOutcome as exc:
            print(f"{suite.name}: {name} {exc}", flush=True)
            return False
        seconds = max(seconds, took)
    plain, graceful_ones = found.values()
    differing = {
        test: (plain.get(test, "not run"), graceful_ones.get(test, "not run"))
        for test in sorted(plain.keys() | graceful_ones.keys())
        if plain.get(test) != graceful_ones.get(test)
    }
    counted = ", ".join(
        f"{name} {sum(outcome == 'passed' for outcome in outcomes.values())}/{len(outcomes)}"
        for name, outcomes in found.items()
    )
    print(f"{suite.name}: {counted} passed, {len(differing)} differ, {seconds:.0f} s")
    known = True
    for test, (before, after) in differing.items():
        why = reason_of(test)
        known = known and (why is not None or after == "passed")
        print(f"  {test}: {before} -> {after}: {why or 'NOT KNOWN'}")
    sys.stdout.flush()
    return known


if __name__ == "__main__":
    sys.exit(main())
