# CELERY_BROKER_URL and CELERY_RESULT_BACKEND in the environment win.
broker_url = "redis://localhost/0"
result_backend = "redis://localhost/1"
graceful_default_task = True  # every task is a GracefulTask
