"""Other job queues, each in a separate environment."""
