"""Build the concrete parts that the settings name."""
