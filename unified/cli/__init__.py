"""The `unified` command: thin, may import every package, no package imports it.

main  the commands
"""

__all__ = ["main"]
