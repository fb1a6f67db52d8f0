"""Members of batches that end in every way, and callbacks that say so in Redis."""

from __future__ import annotations

import os
import signal
import time
from itertools import count

import redis
from celery import Task, signals
from celery.exceptions import Ignore, Reject

from celery_graceful import Batch, Graceful, GracefulTask, current_batch
from celery_graceful.batches import outbox
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.membership import member
from tests.apps import make_app, say, wait_for_file

app = make_app("members")
if "PLAIN" not in os.environ:
    Graceful(app)

if "SWEEP" in os.environ:  # others are looked after soon
    outbox.LEFT, outbox.LOOK_EVERY, member.LOOK_EVERY = 0.2, 0.3, 0.3
if "STOP_AT" in os.environ:
    _at = os.environ["STOP_AT"]

    def _stop(*args, **kwargs):
        say("stops,", _at)
        time.sleep(600)

    if _at == "due":
        outbox.publish_due = _stop
    elif _at == "half":  # of what it begins with
        _sent = count(1)
        signals.after_task_publish.connect(
            lambda sender, **_: _stop() if sender == "piece" and next(_sent) == 2 else None,
            weak=False,
        )
    else:  # where the broker is not the store's Redis, it is sent by then
        BatchLedger.published = _stop

BASES = {"graceful": GracefulTask, "plain": Task, "late": Task}


def _client():
    return redis.Redis.from_url(os.environ["EFFECTS"], decode_responses=True)


def _do(self, what, *args):
    say("started", self.request.id, what)
    if what == "succeed":
        return "done"
    if what == "fail":
        raise ValueError("for good")
    if what == "retry" and self.request.retries < args[0]:
        raise self.retry(countdown=0.05, max_retries=args[0])
    if what == "retry_too_often":
        raise self.retry(countdown=0.01, max_retries=1, exc=ValueError("too often"))
    if what == "ignore":
        raise Ignore
    if what == "reject":
        raise Reject("not this one", requeue=False)
    if what == "requeue" and not self.request.delivery_info["redelivered"]:
        raise Reject("not now", requeue=True)
    if what == "exit":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exit_once" and not os.path.exists(args[0]):
        open(args[0], "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "replace":
        raise self.replace(app.signature(args[0]))
    if what == "wait":
        wait_for_file(args[0])
    if what == "hang" or (what == "hang_once" and not os.path.exists(args[0])):
        if args:
            open(args[0], "w").close()
        time.sleep(60)
    return "done"


def _make(kind, **options):
    @app.task(base=BASES[kind], bind=True, name=kind, acks_late=kind != "plain", **options)
    def task(self, what, *args):
        return _do(self, what, *args)

    @app.task(
        base=BASES[kind],
        bind=True,
        name=f"{kind}_limited",
        acks_late=kind != "plain",
        time_limit=1,
        **options,
    )
    def limited(self, what, *args):
        return _do(self, what, *args)


for _kind in BASES:
    _make(_kind)


@app.task(
    bind=True, name="put_back", acks_late=True, acks_on_failure_or_timeout=False, time_limit=1
)
def put_back(self, what, *args):
    """Its message goes back to the queue at its hard limit."""
    return _do(self, what, *args)


@app.task(base=GracefulTask, bind=True, name="nap")
def nap(self, seconds):
    """Can be interrupted at any time."""
    say("started", self.request.id, "nap")
    self.sleep(seconds)


@app.task(
    bind=True,
    name="lost",
    acks_late=True,
    retry_on_worker_lost=True,
    max_retries=1,
    default_retry_delay=0,
)
def lost(self, path):
    """Celery tries it again when its child has died."""
    if not os.path.exists(path):
        open(path, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="add")
def add(*numbers):
    return "done"


@app.task(bind=True, name="effect", acks_late=True)
def effect(self, summary, name):
    """A callback: what it does can be counted, once a message, however often that is delivered."""
    client, done = _client(), f"done:{self.request.id}"
    if self.request.delivery_info["redelivered"] and client.exists(done):
        return
    with client.pipeline() as pipe:
        pipe.set(done, 1)
        seen = " ".join(str(summary[what]) for what in ("pending", "failed", "revoked"))
        pipe.rpush(f"effects:{summary['id']}:{name}", seen)
        pipe.incr("effects")
        pipe.execute()


@app.task(name="piece", acks_late=True)
def piece(key, number):
    _client().rpush(key, number)
    return number


@app.task(name="whole", acks_late=True)
def whole(numbers, key):
    _client().rpush(key, f"all {sorted(numbers)}")


@app.task(name="adds", acks_late=True)
def adds(key, size):
    """Adds a batch; its first run stands still in the middle of that."""
    stands_still = _client().incr(f"{key}:runs") == 1

    def pieces():
        for number in range(size):
            if stands_still and number == size - 5:
                say("half is added")
                time.sleep(600)
            yield piece.si(key, number)

    inner = Batch(on_success=effect.s("on_success"), description="added")
    inner.add(pieces())
    current_batch().add(inner)


@signals.task_revoked.connect
def tell(request, **_):
    say("revoked", request.id)
