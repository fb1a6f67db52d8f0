import time

from django.db import models


class Order(models.Model):
    id = models.BigAutoField(primary_key=True)
    bills = models.IntegerField(default=0)

    def send_bill(self):
        time.sleep(0.05)  # what takes its time
        self.bills += 1
        self.save()
