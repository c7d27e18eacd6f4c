"""Measure the engine for ``sidestream bench``, with two empty actions and a ledger of runs.

:mod:`sidestream.bench.run` prepares its Redis shard, its PostgreSQL schema and its worker.
"""
