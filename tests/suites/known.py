"""Tests of Celery whose outcome differs with the package, each with the reason."""

from __future__ import annotations

__all__ = ["KNOWN", "reason_of"]

LATE = (
    "tasks are acknowledged late with graceful_default_task, and the test says what early ones show"
)

ITS_CLIENT = "each command is to be a method of Celery's client; ours are asked for by their names"

OUTER_ENDS = "the outer chord, which Celery leaves pending, ends as well: its errbacks run"

BEHIND = (
    "with graceful_default_task RabbitMQ delivers no more than the prefetch count: what expires "
    "behind that waits, as in plain Celery with task_acks_late"
)

TOO_SOON = "the test resets what it looks for after it has sent: a quick worker comes before"

EITHER_ERROR = (
    "plain Celery's as well: get() looks at the header, then at the body, and raises ChordError "
    "instead of the header's own error when both fail between the two"
)

#: The beginning of a test's name -> why.
KNOWN = {
    "t/unit/app/test_control.py::test_client_implements_all_commands": ITS_CLIENT,
    "t/unit/app/test_control.py::test_inspect_implements_all_commands": ITS_CLIENT,
    "t/integration/test_canvas.py::test_chord::test_nested_chord_header_link_error": OUTER_ENDS,
    "t/integration/test_canvas.py::test_chord::test_error_propagates_to_chord_from_": EITHER_ERROR,
    "t/integration/test_canvas.py::test_chord::test_immutable_errback_called_by_chord_from_chain": (
        EITHER_ERROR
    ),
    "t/integration/test_canvas.py::test_chord::test_mutable_errback_called_by_chord_from_chain": (
        EITHER_ERROR
    ),
    "t/integration/test_inspect.py::test_Inspect::test_active": LATE,
    "t/integration/test_inspect.py::test_Inspect::test_query_task": LATE,
    "t/integration/test_tasks.py::test_tasks::test_expired": BEHIND,
    "t/integration/test_tasks.py::test_task_replacement::test_replaced_task_nesting_l": TOO_SOON,
}


def reason_of(test: str) -> str | None:
    """Why the outcome of a test may differ; ``None`` if it may not."""
    return next((why for name, why in KNOWN.items() if test.startswith(name)), None)
