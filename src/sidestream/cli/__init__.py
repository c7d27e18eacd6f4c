"""The ``sidestream`` command: words in, words out. Each command parses, calls the wiring and prints."""
