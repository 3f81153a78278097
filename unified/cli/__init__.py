"""The `unified` command: thin, may import anything, nothing imports it.

main  the commands
"""

__all__ = ["main"]
