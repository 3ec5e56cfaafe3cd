"""`python -m gift_train.cli`: the command line."""

from gift_train.cli import main

main()
