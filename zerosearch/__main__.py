"""`python -m zerosearch` is the command `zerosearch`."""

from zerosearch.cli.main import run

run()
