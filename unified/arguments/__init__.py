"""Command lines: dataclass fields as YAML keys, flags and help texts; one-line errors.

needs          settings that count only where another one is on
hub_names      values that name models and data sets of the hub
manual         `--help` of a script
fields         dataclass fields with a help text
parser         YAML and flags -> dataclasses; `run_main` of every script
shipped_files  values that name files which the package ships
"""

__all__ = ["fields", "hub_names", "manual", "needs", "parser", "shipped_files"]
