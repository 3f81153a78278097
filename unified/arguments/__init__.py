"""Command lines: dataclasses whose fields are YAML keys, flags and help texts, and errors of one line.

fields  a field with its help
parser  YAML and flags -> dataclasses; `run_main` of every script
"""

__all__ = ["fields", "parser"]
