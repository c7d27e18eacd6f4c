"""The benchmark behind ``sidestream bench``: two empty actions, a ledger of their runs, and the measurements.

:mod:`sidestream.bench.run` prepares its Redis shard, its PostgreSQL schema and its worker.
"""
