"""The path after the process boundary: claim, send to a child, run, decide, settle.

Read in this order: supervisor, dispatcher, zygote, child, runner, outcome, collector, settler, lease.
"""
