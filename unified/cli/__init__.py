"""The `unified` command: thin, may import every package, no package imports it.

main             the commands
options          options that several commands have
images           images that commands write: which, and under what names
chat_command     `chat`, on a terminal or piped
conversation     what `chat` does with a line
line_editor      the line that is typed: editing, history, completion
terminal_images  images in a terminal
handing_on       `merge`, `publish`, `average`
serve_command    `serve`
shipped          the scripts, configurations and data that come with the package
running          a script's command line
script_commands  `ls`, `cp` and `run`
version          the version that is installed
"""

__all__ = [
    "chat_command",
    "conversation",
    "handing_on",
    "images",
    "line_editor",
    "main",
    "options",
    "running",
    "script_commands",
    "serve_command",
    "shipped",
    "terminal_images",
    "version",
]
