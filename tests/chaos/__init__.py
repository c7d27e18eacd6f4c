"""The chaos run: real processes, real servers, and a ledger that shows what a kill broke."""
