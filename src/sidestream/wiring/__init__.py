"""Build the concrete parts of a client or worker from the settings."""
