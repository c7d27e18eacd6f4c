"""Publish jobs to the broker after the commit, without making the caller wait for it."""
