"""Carry a job out: each executor owns the transaction in which an action's effect and its "done" are committed."""
