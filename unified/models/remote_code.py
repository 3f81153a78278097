"""A checkpoint's remote-code module, for programs that do not import this package, such as pipelines and lm-eval.

HF's Auto classes load a custom architecture with `trust_remote_code=True`: they import the module that the config's
`auto_map` names from the checkpoint's folder. Ours only imports the installed package.
"""

from os import PathLike
from pathlib import Path

MODULE = "unified_checkpoint"
AUTO_MAP = {
    "AutoConfig": f"{MODULE}.UnifiedConfig",
    "AutoModel": f"{MODULE}.UnifiedModel",
    "AutoModelForCausalLM": f"{MODULE}.UnifiedForCausalLM",
    "AutoModelForImageTextToText": f"{MODULE}.UnifiedForCausalLM",
    "AutoModelForMultimodalLM": f"{MODULE}.UnifiedForCausalLM",
    "AutoProcessor": f"{MODULE}.UnifiedProcessor",
}
# in a try: transformers requires the packages of other imports, by module names that are not always PyPI's
SOURCE = '''"""Where HF's Auto classes find this checkpoint's model: in the installed package `unified`."""

try:
    from unified import UnifiedConfig, UnifiedForCausalLM, UnifiedModel, UnifiedProcessor
except ImportError as error:
    raise ImportError("this checkpoint needs the package unified-ar, which has the module unified") from error

__all__ = ["UnifiedConfig", "UnifiedForCausalLM", "UnifiedModel", "UnifiedProcessor"]
'''


def write_module(folder: str | PathLike) -> None:
    """Write the module that `AUTO_MAP` names to a checkpoint's folder."""
    Path(folder, f"{MODULE}.py").write_text(SOURCE, encoding="utf-8")
