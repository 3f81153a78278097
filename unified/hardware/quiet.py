"""What libraries say on every good run, left out by commands; their warnings and errors stay.

Commands call it, never the library at import. HF's own variables, set to 0, bring the bars back.
"""

import importlib
import logging
import os
import sys

BARS = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "transformers.utils.logging",  # "Loading weights", "Writing model shards"
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "datasets.utils.tqdm",  # "Generating train split"
}
NO_NEWS = {  # loggers and what they say on every good run
    "DeepSpeed": "Setting accelerator to CPU",  # the hardware line says what a command runs on
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",  # PEFT imports it anyway
}


def quiet_libraries() -> None:
    """No bars of transformers and datasets, and no word of DeepSpeed's and bitsandbytes' that there is no GPU."""
    for variable, module in BARS.items():
        os.environ.setdefault(variable, "1")  # where the library is imported later
        if os.environ[variable] == "1" and module.split(".")[0] in sys.modules:
            library = importlib.import_module(module)
            disable = "disable_progress_bar" if module.startswith("transformers") else "disable_progress_bars"
            getattr(library, disable)()
    for logger in NO_NEWS:
        logging.getLogger(logger).addFilter(is_news)


def is_news(record: logging.LogRecord) -> bool:
    """Whether a log record says what no command says itself."""
    return NO_NEWS.get(record.name, "\0") not in record.getMessage()
