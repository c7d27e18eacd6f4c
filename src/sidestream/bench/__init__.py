"""What ``sidestream bench`` runs: two actions that do nothing, the ledger in which they stamp, and the measurements.

The servers, the worker and the room in which all this happens are made in :mod:`sidestream.bench.run`.
"""
