"""Where HF's Auto classes find this checkpoint's model: in the installed package `unified`."""

try:
    from unified import UnifiedConfig, UnifiedForCausalLM, UnifiedModel, UnifiedProcessor
except ImportError as error:
    raise ImportError("this checkpoint needs the package unified-ar, which has the module unified") from error

__all__ = ["UnifiedConfig", "UnifiedForCausalLM", "UnifiedModel", "UnifiedProcessor"]
