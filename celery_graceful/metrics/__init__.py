"""Numbers of a worker, for Prometheus and OpenTelemetry: counted in its main process.

Come in by `worker_metrics.WorkerMetrics`. Nothing of it is imported where nobody wants them.

May not know what a task is, nor where the numbers come from.
"""

__all__ = ["worker_metrics"]
