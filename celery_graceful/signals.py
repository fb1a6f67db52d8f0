"""Signals (``celery.utils.dispatch``) that this package sends.

``task_interrupted``
    A task was interrupted and its message goes back to the queue. ``sender`` is the task;
    ``task_id``, ``args``, ``kwargs``, ``reason`` (the value of an ``InterruptReason``) and
    ``given_up`` describe it. Sent in the process that runs the task, or, where ``given_up`` is
    true (the hard deadline passed), in the worker's main process.

``task_quarantined``
    A task went to quarantine, failed: the process that ran it died too often, or no worker that
    got it knew it. ``sender`` is the task; ``task_id``, ``exception`` (a ``PoisonedTask``, or
    Celery's ``NotRegistered``), ``args``, ``kwargs`` and ``headers`` (those of its message)
    describe it. Sent from a thread, in the main process of
    the worker that found out (or by ``celery graceful rescue``), which need not be one that ran
    the task.

``worker_draining``
    The worker entered ``QUIET``, ``SOFT`` or ``HARD``; or ``RUNNING``, where it was quiet and was
    told to go on. ``sender`` is the worker's host name;
    ``phase`` is a ``Phase``, ``reason`` is an ``InterruptReason``, ``deadlines`` is a
    ``Deadlines`` (seconds after the request). Sent from a thread of its own, never from a
    signal handler.
"""

from __future__ import annotations

from celery.utils.dispatch import Signal

__all__ = ["task_interrupted", "task_quarantined", "worker_draining"]

task_interrupted = Signal(
    name="task_interrupted",
    providing_args={"task_id", "args", "kwargs", "reason", "given_up"},
)
task_quarantined = Signal(
    name="task_quarantined",
    providing_args={"task_id", "exception", "args", "kwargs", "headers"},
)
worker_draining = Signal(
    name="worker_draining",
    providing_args={"phase", "reason", "deadlines"},
)
