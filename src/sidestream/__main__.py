"""``python -m sidestream``: the command line."""

from sidestream.cli.main import main

main()
