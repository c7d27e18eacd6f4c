"""Servers, contract suites and an in-process worker for the tests and benchmarks."""
