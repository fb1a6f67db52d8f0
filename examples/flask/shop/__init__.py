from celery import Celery, Task
from celery_graceful import Graceful
from flask import Flask


def celery_init_app(app: Flask) -> Celery:
    class FlaskTask(Task):
        def __call__(self, *args: object, **kwargs: object) -> object:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery_app = Celery(app.name, task_cls=FlaskTask)
    celery_app.config_from_object(app.config["CELERY"])
    Graceful(celery_app)
    celery_app.set_default()
    app.extensions["celery"] = celery_app
    return celery_app


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(
        EXPORT_FILE="export.txt",
        CELERY={
            # CELERY_BROKER_URL and CELERY_RESULT_BACKEND in the environment win.
            "broker_url": "redis://localhost/0",
            "result_backend": "redis://localhost/1",
            "graceful_default_task": True,  # every task is a GracefulTask
        },
    )
    app.config.from_prefixed_env()
    celery_init_app(app)

    from shop import views

    app.register_blueprint(views.exports)
    return app
