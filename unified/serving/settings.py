"""What a server is told: who may ask, how much, and how it draws by default."""

from dataclasses import dataclass, field
from pathlib import Path

from unified.models.image_sampling import ImageSampling

MIN_KEY = 16  # characters


@dataclass(frozen=True)
class ServerSettings:
    """Bounds and defaults of a server; requests beyond the bounds are refused.

    model_name: as answers and /v1/models have it. strict_model: refuse requests that name another model.
    api_keys: any of them is asked for; empty: none. allow_urls: fetch http(s) images, of public addresses only.
    allow_origins: of other sites' pages that may ask from a browser (CORS).
    """

    model_name: str = "unified"
    strict_model: bool = False
    api_keys: tuple[str, ...] = ()
    allow_urls: bool = False
    allow_origins: tuple[str, ...] = ()
    sampling: ImageSampling = field(default_factory=ImageSampling)
    max_body_bytes: int = 20 * 2**20
    max_prompt_characters: int = 32_000
    max_messages: int = 200
    max_input_images: int = 16
    max_image_pixels: int = 4096 * 4096
    max_images: int = 8  # of a request: n, or of an answer
    max_new_tokens: int = 4096
    default_new_tokens: int = 256
    seconds: float = 300.0


def read_keys(path: Path) -> tuple[str, ...]:
    """API keys of a file, one a line; empty lines and those with # are skipped.

    Raises ValueError for a file without any, and for keys that are too short.
    """
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ValueError(f"{path} has no key; write one a line, such as the output of `openssl rand -hex 24`")
    short = [number for number, line in enumerate(lines, 1) if line in keys and len(line) < MIN_KEY]
    if short:
        raise ValueError(f"{path}:{short[0]}: a key of fewer than {MIN_KEY} characters; take `openssl rand -hex 24`")
    return keys
