"""``celery graceful``: what there is to do from a shell.

Come in by `group`, an entry point of Celery's commands.

May not know of a running worker: it asks the store.
"""

__all__ = ["group"]
