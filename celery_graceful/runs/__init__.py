"""One running task: when an exception may be raised in it, and what it sees of that.

Come in by `run.execute` (who runs a task), `run.current` (who is inside of one) and
`interrupt` (what users call).

May not know of messages, or of where checkpoints are kept.
"""

__all__ = [
    "frames",
    "interrupt",
    "interruption",
    "lock_steps",
    "log_locks",
    "run",
    "stacks",
    "unstored",
]
