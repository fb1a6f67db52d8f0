"""Callbacks: signatures that a batch sends, checked when it is made, and kept in the ledger."""

from __future__ import annotations

import base64
from typing import Any

from celery import Signature
from celery.canvas import maybe_signature
from celery.exceptions import QueueNotFound
from kombu.utils.json import dumps, loads

from celery_graceful.batches.kept_headers import headers_here, keep
from celery_graceful.batches.marks import CALLBACK, Mark, all_of, callback_id, first_of, parts_of
from celery_graceful.batches.members import last_of, unwrapped
from celery_graceful.batches.model import Callback
from celery_graceful.batches.packing import bind, load
from celery_graceful.batches.signatures import named
from celery_graceful.batches.status import Status
from celery_graceful.system.describe import describe

__all__ = ["check", "kept_signature", "made", "signature_of"]


def check(name: str, sig: Any) -> Any:
    """The signature that was given as a callback, as a copy.

    Args:
        name: Such as ``on_success``.
        sig: What was given.

    Raises:
        TypeError: It is no signature, or cannot be serialized; or its task takes no summary.
        ValueError: It has no last task, or there is no such queue.
    """
    if not isinstance(sig, Signature):
        mend = "give a signature, such as report.s(), or report.si() for one without the summary"
        raise TypeError(f"{name}: {named(sig)} is no signature: {mend}")
    sig = unwrapped(sig.clone())
    last_of(sig, f"{name}:")
    try:
        loads(dumps(dict(sig)))
    except Exception as exc:
        raise TypeError(
            f"{name}: {named(sig)} cannot be serialized as JSON: {describe(exc)}; give ids in "
            "place of objects"
        ) from exc
    return sig


def made(app: Any, batch: str, name: str, sig: Any, of: str = "") -> Callback:
    """What the ledger keeps of a callback.

    Args:
        app: The Celery app.
        batch: Id of the batch.
        name: Such as ``on_success``.
        sig: What ``check`` returned; it is changed.
        of: What the batch is called, for people; empty: they know which.

    Raises:
        TypeError: Its task is known here, and does not take what it would get.
        ValueError: It cannot be sent: there is no such queue.
    """
    first = first_of(sig)
    if parts_of(first) is None:
        _check_arguments(app, f"{of}{name}", first)
        try:
            app.amqp.router.route(dict(first.options), first.task)
        except QueueNotFound as exc:
            raise ValueError(f"{of}{name}: {named(sig)} cannot be sent: {describe(exc)}") from exc
    for later in all_of(sig):
        if later is not first and later.immutable and parts_of(later) is None:
            _check_arguments(app, f"{of}{name}", later)
    takes_summary = not (sig.immutable or first.immutable)
    task_id = callback_id(batch, name)
    keep(sig, headers_here(app))
    bind(sig, Mark(batch, task_id), {CALLBACK: str(Mark(batch, name))})
    return Callback(task_id, loads(dumps(dict(sig))), takes_summary)


def _check_arguments(app: Any, name: str, sig: Any) -> None:
    """Celery refuses wrong arguments where a task is sent: here nobody would hear of it."""
    task = app.tasks.get(sig.task)
    check_arguments = getattr(task, "__header__", None)
    if check_arguments is None or not task.typing:
        return
    args = sig.args if sig.immutable else ({}, *sig.args)
    try:
        check_arguments(*args, **sig.kwargs)
    except TypeError as exc:
        short = sig.task.rpartition(".")[2]
        mend = f"; it gets the summary as its first argument, and none as {short}.si(...)"
        raise TypeError(
            f"{name}: {named(sig)} cannot be called: {exc}{'' if sig.immutable else mend}"
        ) from exc


def signature_of(app: Any, callback: Callback, status: Status) -> Any:
    """What is to be sent for a callback that has become due.

    Args:
        app: The Celery app.
        callback: What the ledger keeps of it.
        status: How the batch stands.

    Returns:
        A signature with its id, headers and the summary: ``apply_async()`` sends it.
    """
    sig = kept_signature(app, callback)
    if callback.takes_summary:
        sig.args = (status.summary(), *sig.args)
    return sig


def kept_signature(app: Any, callback: Callback) -> Any:
    """The signature of a callback as the ledger keeps it: without what it is given.

    Raises:
        Exception: The body of a chord cannot be read; see ``unpack``.
    """
    if callback.gathers:
        return load(app, base64.b64decode(callback.signature["packed"]))
    return maybe_signature(Signature.from_dict(callback.signature, app=app), app=app)
