"""The `unified` command: thin, may import every package, no package imports it.

main             the commands
images           images that commands write: which, and under what names
conversation     what `chat` does with a line
shipped          the scripts, configurations and data that come with the package
running          a script's command line
script_commands  `ls`, `cp` and `run`
version          the version that is installed
"""

__all__ = ["conversation", "images", "main", "running", "script_commands", "shipped", "version"]
