"""The ``sidestream`` command: each noun parses its words, calls admin or wiring, and prints."""
