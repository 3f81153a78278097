"""Options that several commands have."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from unified.inference.arguments import SamplingArguments
from unified.models.image_sampling import ImageSampling


def sampling_option(name: str) -> Any:
    """The flag of a field of `SamplingArguments`, whose help and check it has."""

    def check(value: Any) -> Any:
        try:
            ImageSampling(**{name: value})
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        return value

    return typer.Option(help=SamplingArguments.__dataclass_fields__[name].metadata["help"], callback=check)


def from_hub(folder: Path) -> Path:
    """The folder of `--model`, downloaded where it is a name of the hub."""
    from unified.files.hub import model_folder

    return model_folder(folder, "--model")


ModelDir = Annotated[
    Path, typer.Option("--model", help="folder or hub name of a checkpoint, or of a LoRA adapter", callback=from_hub)
]
AdapterDir = Annotated[Path, typer.Option("--model", help="folder or hub name of a LoRA adapter", callback=from_hub)]
BaseDir = Annotated[
    Path | None, typer.Option("--base", help="where an adapter's base is, if not where it says; or UNIFIED_BASE")
]
Quantize = Annotated[
    Literal["4bit", "8bit"] | None,
    typer.Option(help="the LLM's layers in 4 or 8 bit of bitsandbytes; default: as the weights are stored"),
]
MAX_SEED = 2**63 - 1  # torch's have 64 bits; the others of several pictures are behind it
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="seed of the generated images")]
GuidanceScale = Annotated[float, sampling_option("guidance_scale")]
Temperature = Annotated[float, sampling_option("temperature")]
TopK = Annotated[int, sampling_option("top_k")]
TopP = Annotated[float, sampling_option("top_p")]
# chosen where they are not given, and said on stderr; each has an environment variable (unified/hardware/arguments.py)
Device = Annotated[Literal["cpu", "cuda", "mps"] | None, typer.Option(help="where the model runs; or UNIFIED_DEVICE")]
Precision = Annotated[
    Literal["float32", "bf16", "fp16"] | None,
    typer.Option(help="of matrix products; or UNIFIED_PRECISION; default: as the weights are stored"),
]
Threads = Annotated[int | None, typer.Option(min=1, help="threads on the CPU; or UNIFIED_THREADS")]
WaitPolicy = Annotated[
    Literal["passive", "brief", "active", "system"] | None,
    typer.Option(help="how waiting threads wait; or UNIFIED_WAIT_POLICY; default: by what else runs"),
]


def choose_hardware(device: Any, precision: Any, threads: int | None, wait_policy: Any) -> Any:
    """What the model runs on, said on stderr; returns the context in which it works."""
    from unified.hardware.arguments import HardwareArguments
    from unified.hardware.setup import products, set_up

    set_up(HardwareArguments(device, precision, threads, wait_policy))
    return products
