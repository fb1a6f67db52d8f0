import logging

from celery import shared_task
from celery_graceful import sources

from orders.models import Order

log = logging.getLogger(__name__)


@shared_task(bind=True)
def bill(self):
    for order in self.iterate(sources.queryset(Order.objects.all()), every=1):
        order.send_bill()
        log.warning("order %d has its bill", order.pk)
