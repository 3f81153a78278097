"""What commands and scripts that generate images are told of sampling: flags, help and checks of `ImageSampling`."""

from dataclasses import dataclass, fields
from typing import Any

from unified.arguments.fields import arg, arg_of
from unified.models.image_sampling import ImageSampling


@dataclass(kw_only=True)
class SamplingArguments:
    """How the codes of images are sampled; the names and defaults are ImageSampling's."""

    guidance_scale: float = arg(ImageSampling.guidance_scale, "classifier-free guidance scale; 1 is off")
    temperature: float = arg(ImageSampling.temperature, "sampling temperature of image codes; 0 is greedy")
    top_k: int = arg(ImageSampling.top_k, "top-k sampling of image codes; 0 is off")
    top_p: float = arg(ImageSampling.top_p, "top-p (nucleus) sampling of image codes; 1 is off")

    def __post_init__(self) -> None:
        self.sampling()

    def sampling(self) -> ImageSampling:
        """As `generate` takes it. Raises ValueError that begins with the flag of a value that has no meaning."""
        return sampling_of(self)

    def sampling_settings(self) -> dict[str, Any]:
        """The values by name: what images depend on."""
        return {name: getattr(self, name) for name in NAMES}

    def sampling_flags(self) -> list[str]:
        """The values as words of another script's command line."""
        return [word for name, value in self.sampling_settings().items() for word in (f"--{name}", str(value))]


@dataclass(kw_only=True)
class GuidedSamplingArguments(SamplingArguments):
    """The same with the defaults at which models fine-tuned on Scenes generate best."""

    guidance_scale: float = arg_of(SamplingArguments, "guidance_scale", 3.0)
    temperature: float = arg_of(SamplingArguments, "temperature", 0.7)


NAMES = tuple(field.name for field in fields(SamplingArguments))


def sampling_of(settings: Any, prefix: str = "") -> ImageSampling:
    """What a dataclass says in those of its fields that are `prefix` and a name of `SamplingArguments`.

    Raises ValueError that begins with the flag of a value that has no meaning.
    """
    given = {name: vars(settings)[prefix + name] for name in NAMES if prefix + name in vars(settings)}
    try:
        return ImageSampling(**given)
    except ValueError as error:
        raise ValueError(f"--{prefix}{error}") from None
