"""Numbers of a worker, for Prometheus and OpenTelemetry: counted in its main process.

Come in by `worker_metrics.WorkerMetrics`. Where nobody wants them, nothing of it is imported but
`extras`, which says whether they can be had; so does `prometheus.load_registry`.

May not know what a task is, nor where the numbers come from.
"""

__all__ = ["extras", "prometheus", "worker_metrics"]
