"""`python -m forethought`: the command line, where its script is not on the path."""

from forethought.cli import main

main()
