"""Command lines: dataclass fields as YAML keys, flags and help texts; one-line errors.

fields         dataclass fields with a help text
parser         YAML and flags -> dataclasses; `run_main` of every script
shipped_files  values that name files which the package ships
"""

__all__ = ["fields", "parser", "shipped_files"]
