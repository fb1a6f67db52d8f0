"""What a worker holds of its queues."""
