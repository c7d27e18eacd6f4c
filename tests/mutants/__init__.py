"""Planted bugs: each must be caught by the tests that stand beside it."""
