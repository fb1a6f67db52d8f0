"""`GracefulTask`: the side of an interruption that runs with the task.

Come in by `base.GracefulTask`.

May not know of the main process: what it is to hear travels as an exception.
"""

__all__ = ["base", "default_base", "eager", "misspelt", "successor", "trace_log"]
