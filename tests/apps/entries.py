"""Beat entries with awkward names, some of which come while beat runs."""

from __future__ import annotations

from celery import beat

from celery_graceful import Graceful, GracefulTask
from tests.apps import make_app, say, sentry

app = make_app("entries")
graceful = Graceful(app)
sentry.init()

LONG = "rebuild-the-search-index-of-all-the-products-in-the-"
AT_START = [
    LONG + "shop-of-vienna",
    LONG + "shop-of-graz",
    "日报",
    "Nightly.Export",
    "nightlyexport",
]
LATER = ["周报", "Nightly Export", "nightly export", "nightlyexport!"]

app.conf.graceful_monitor_beat = True
app.conf.beat_max_loop_interval = 0.2


@app.task(base=GracefulTask, name="job")
def job(name):
    say("ran", name)


def entry(name):
    return {"task": "job", "schedule": 0.5, "args": [name]}


app.conf.beat_schedule = {name: entry(name) for name in AT_START}


class AddsLater(beat.Scheduler):
    """Has more entries when those of the start have fired, as a database's scheduler does."""

    ticks = 0

    def setup_schedule(self):
        self.install_default_entries({})
        self.merge_inplace(app.conf.beat_schedule)

    def tick(self, *args, **kwargs):
        self.ticks += 1
        if self.ticks == 10:
            self.update_from_dict({name: entry(name) for name in LATER})
            self._heap = None
        return super().tick(*args, **kwargs)
