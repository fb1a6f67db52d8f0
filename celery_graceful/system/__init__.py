"""Threads, locks and logging that block nobody, and other small tools.

Come in by the module that has the tool.

May know nothing of workers, tasks or messages.
"""

__all__ = [
    "arguments",
    "beat_stop",
    "describe",
    "exception_chain",
    "fatal",
    "garbage",
    "green_locks",
    "guarded_process",
    "known_fields",
    "loaded",
    "log_thread",
    "native",
    "on_demand",
    "orphans",
    "patched",
    "per_app",
    "portions",
    "process",
    "process_identity",
    "repeating",
    "telemetry",
    "version",
]
