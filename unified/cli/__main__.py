"""`python -m unified.cli` is the `unified` command."""

from unified.cli.main import main

main()
