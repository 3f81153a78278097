"""The `unified` command: thin, may import every package, no package imports it.

main    the commands
images  images that commands write: which, and under what names
"""

__all__ = ["images", "main"]
