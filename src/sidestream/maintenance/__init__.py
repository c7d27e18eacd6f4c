"""Periodic tasks that every worker runs, one per file."""
