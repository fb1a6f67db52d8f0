"""Tasks of celery-batches, which gather many calls into one; chords are tracked."""

from __future__ import annotations

from celery_batches import Batches

from celery_graceful import Graceful
from tests.apps import make_app, say

app = make_app("celery_batches")
app.conf.graceful_track_chords = True
Graceful(app)


@app.task(base=Batches, flush_every=3, flush_interval=1, name="gathers", acks_late=True)
def gathers(requests):
    say("gathered", *sorted(request.args[0] for request in requests))
