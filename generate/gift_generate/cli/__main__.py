"""`python -m gift_generate.cli`: the command line."""

from gift_generate.cli import main

main()
