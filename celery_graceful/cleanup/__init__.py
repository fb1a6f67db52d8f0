"""What runs at the end of a process, after its last task.

Come in by `callbacks` (``on_exit``) and `resource` (``Graceful.resource``).

May not know whose process it is: a worker's, a child's, a script's.
"""

__all__ = ["callbacks", "resource", "time_limit"]
