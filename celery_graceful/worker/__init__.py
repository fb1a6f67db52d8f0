"""The main process: its steps, its loop, its drain.

Come in by `bootsteps`, which Celery loads by name, and `wiring`, where all of it is built.

May know everything below; is known by the plugin alone.
"""

__all__ = ["bootsteps", "control"]
