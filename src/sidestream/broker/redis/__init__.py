"""Redis as the broker: the only package that sends commands to Redis."""
