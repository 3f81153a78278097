"""What a checkpoint carries for programs that do not import this package, such as lm-eval: the way to its classes.

HF's Auto classes know an architecture of others when they are told `trust_remote_code=True`: then they run the module
that the configuration's `auto_map` names, from the checkpoint's folder. Ours holds no code but an import of the
installed package.
"""

from os import PathLike
from pathlib import Path

MODULE = "unified_checkpoint"
AUTO_MAP = {
    "AutoConfig": f"{MODULE}.UnifiedConfig",
    "AutoModel": f"{MODULE}.UnifiedModel",
    "AutoModelForCausalLM": f"{MODULE}.UnifiedForCausalLM",
}
# transformers asks for the packages it finds imported outside of a try, by names that are not always PyPI's
SOURCE = '''"""Where HF's Auto classes find this checkpoint's model: in the installed package `unified`."""

try:
    from unified import UnifiedConfig, UnifiedForCausalLM, UnifiedModel
except ImportError as error:
    raise ImportError("this checkpoint needs the package unified-ar, which has the module unified") from error

__all__ = ["UnifiedConfig", "UnifiedForCausalLM", "UnifiedModel"]
'''


def write_module(folder: str | PathLike) -> None:
    """Put the module that `AUTO_MAP` names into a checkpoint's folder."""
    Path(folder, f"{MODULE}.py").write_text(SOURCE, encoding="utf-8")
