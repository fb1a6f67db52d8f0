"""GracefulTask together with everything that people put into their task bases.

Every task waits for its interruption, unless SECOND is in the environment: there it ends at
once, by returning its name. How it is interrupted is its argument: at a `point` that it named
safe (Interrupted), or by the `limit` of the soft deadline (ShutdownTimeLimit).

Annotations are no strings here: Celery 5.5 does not resolve them for `pydantic=True`.
"""

import os
import sys
import time
from typing import Any

import celery
from celery import signals
from celery_singleton import Singleton
from pydantic import BaseModel

import celery_graceful
from celery_graceful import Graceful, GracefulTask, Interrupt
from celery_graceful.signals import task_interrupted
from tests.apps import make_app, say

app = make_app("compositions")
app.conf.singleton_backend_url = os.environ.get("RESULT_URL")
app.conf.result_extended = True
Graceful(app)

if "SENTRY" in os.environ:
    from tests.apps import sentry_file

    sentry_file.init(os.environ["SENTRY"])

SECOND = "SECOND" in os.environ
LONG = 60.0


def wait(how: str) -> None:
    """Until an interruption comes."""
    request = celery.current_task.request
    name = celery.current_task.name
    say("started", name, how, request.id, f"retries={request.retries}")
    if SECOND:
        return
    if how == "point":
        celery_graceful.sleep(LONG)
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        time.sleep(0.02)
    say("NOT REACHED", name)


def loud(signal: str) -> Any:
    def receiver(sender: Any = None, **kwargs: Any) -> None:
        request = kwargs.get("request")
        task_id = kwargs.get("task_id") or getattr(request, "id", None) or sender.request.id
        details = [str(kwargs[k]) for k in ("reason", "given_up") if k in kwargs]
        say("signal", signal, getattr(sender, "name", sender), task_id, *details[:2])

    return receiver


for _name in ("task_failure", "task_retry", "task_success", "task_internal_error"):
    getattr(signals, _name).connect(loud(_name), weak=False)
task_interrupted.connect(loud("task_interrupted"), weak=False)


class Hooks(celery.Task):
    """Says which of its hooks are called."""

    abstract = True

    def _say(self, hook: str, task_id: str | None = None) -> None:
        say("hook", hook, self.name, task_id or self.request.id)

    def before_start(self, task_id, args, kwargs):
        self._say("before_start", task_id)
        super().before_start(task_id, args, kwargs)

    def on_success(self, retval, task_id, args, kwargs):
        self._say("on_success", task_id)
        super().on_success(retval, task_id, args, kwargs)

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        self._say("on_failure", task_id)
        super().on_failure(exc, task_id, args, kwargs, einfo)

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        self._say("on_retry", task_id)
        super().on_retry(exc, task_id, args, kwargs, einfo)

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        self._say("after_return", task_id)
        super().after_return(status, retval, task_id, args, kwargs, einfo)

    def on_interrupted(self, interrupt: Interrupt) -> None:
        self._say("on_interrupted")
        assert interrupt.time_left() >= 0
        assert self.interrupted
        assert self.interrupt is not None


class CallsSuper(celery.Task):
    abstract = True

    def __call__(self, *args, **kwargs):
        say("called", self.name, self.request.id)
        try:
            return super().__call__(*args, **kwargs)
        finally:
            say("left", self.name, self.request.id)


class CallsRun(celery.Task):
    abstract = True

    def __call__(self, *args, **kwargs):
        say("called", self.name, self.request.id)
        return self.run(*args, **kwargs)


class Swallows(celery.Task):
    abstract = True

    def __call__(self, *args, **kwargs):
        say("called", self.name, self.request.id)
        try:
            return super().__call__(*args, **kwargs)
        except Exception:
            return "swallowed"


#: Names of the tasks that one test sends, each with both ways to be interrupted.
names: list[str] = []

for _base in (Hooks, CallsSuper, CallsRun, Swallows, Singleton):
    for _bases in ((GracefulTask, _base), (_base, GracefulTask)):
        _both = type("_".join(b.__name__ for b in _bases), _bases, {"abstract": True})

        @app.task(base=_both, bind=True, name=_both.__name__)
        def composed(self, how):
            wait(how)
            return self.name

        names.append(composed.name)


# Three deep: the user's own base is a graceful one, and has a child with a __call__ of its own.
class Deep(CallsSuper, GracefulTask):
    abstract = True


class Deeper(Deep):
    abstract = True

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


class ClassBased(GracefulTask):
    name = "class_based"

    def run(self, how):
        wait(how)
        return self.name


class ClassBasedWithCall(Hooks, Deeper):
    name = "class_based_with_call"

    def run(self, how):
        wait(how)
        return self.name


app.register_task(ClassBased())
app.register_task(ClassBasedWithCall())
names += ["class_based", "class_based_with_call"]


@app.task(base=Deeper, name="deeper")
def deeper(how):
    wait(how)
    return "deeper"


@app.task(base=GracefulTask, name="unbound")
def unbound(how):
    with celery_graceful.shield():
        pass
    wait(how)
    return "unbound"


class Hooked(Hooks, GracefulTask):
    abstract = True


@app.task(base=Hooked, bind=True, name="autoretry", autoretry_for=(Exception,), max_retries=3)
def autoretry(self, how):
    wait(how)
    return self.name


@app.task(base=Hooked, name="autoretry_base", autoretry_for=(BaseException,), retry_backoff=True)
def autoretry_base(how):
    wait(how)
    return "autoretry_base"


@app.task(base=Hooked, bind=True, name="by_hand", max_retries=0)
def by_hand(self, how):
    try:
        wait(how)
    except Exception as exc:
        raise self.retry(exc=exc) from exc
    return self.name


@app.task(base=Hooked, bind=True, name="by_hand_bare")
def by_hand_bare(self, how):
    try:
        wait(how)
    except BaseException:
        self.retry(countdown=1)
    return self.name


class Order(BaseModel):
    how: str


class Receipt(BaseModel):
    name: str


@app.task(base=GracefulTask, pydantic=True, name="pydantic")
def pydantic(order: Order) -> Receipt:
    assert isinstance(order, Order)
    wait(order.how)
    return Receipt(name="pydantic")


names += ["deeper", "unbound", "autoretry", "autoretry_base", "by_hand", "by_hand_bare"]


@app.task(base=GracefulTask, bind=True, name="late")
def late(self, how="point"):
    wait(how)
    return self.name


@app.task(base=GracefulTask, bind=True, name="early", acks_late=False)
def early(self, how="point"):
    wait(how)
    return self.name


@app.task(base=GracefulTask, bind=True, name="ignoring", ignore_result=True)
def ignoring(self, how="point"):
    wait(how)


@app.task(base=GracefulTask, name="quick")
def quick(value):
    say("started", "quick", "quick", value)
    return value


@app.task(base=GracefulTask, name="collect")
def collect(values):
    say("collected", *sorted(values))
    return sorted(values)


@app.task(base=GracefulTask, name="called_back")
def called_back(*args):
    say("called back", *args)


@app.task(base=GracefulTask, name="fails")
def fails():
    raise LookupError("a real failure")


sys.setswitchinterval(0.001)
