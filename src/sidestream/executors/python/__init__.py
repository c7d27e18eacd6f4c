"""Run plain Python functions as jobs."""
