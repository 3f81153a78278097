"""Requests and answers of OpenAI's API, as far as this server knows them; unknown fields are accepted and named.

Numbers have the bounds in which they mean something; what clients send and this model has no use for is accepted.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_SEED = 2**32 - 1
MAX_IMAGES = 64  # of a request, whatever a server allows
Scale = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
LEAST = 1e-9  # a share that the most probable alone reaches, as 0 of OpenAI's means
Share = Annotated[float, Field(ge=0, le=1), AfterValidator(lambda share: max(share, LEAST))]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED, strict=True)]
Size = Annotated[str, Field(max_length=32)]
Word = Annotated[str, Field(max_length=64)]
Name = Annotated[str, Field(max_length=256)]
OutputFormat = Literal["png", "jpeg", "webp"]
Quality = Annotated[int, Field(ge=0, le=100, strict=True)]


class Request(BaseModel):
    """A request: strings are strings and numbers numbers, and unknown fields are kept in `model_extra`."""

    model_config = ConfigDict(extra="allow", strict=True)
    model: Name | None = None
    user: Name | None = None


class ImageSettings(BaseModel):
    """How codes are sampled; what is not given is the server's default, and unknown fields are kept to be named."""

    model_config = ConfigDict(extra="allow", strict=True)
    temperature: Scale | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None
    top_p: Share | None = None
    guidance_scale: Scale | None = None


class ImageRequest(Request, ImageSettings):
    """`POST /v1/images/generations`.

    n images have the seeds seed, seed + 1, ...; partial_images is the number of scales that are shown before the last.
    """

    model_config = ConfigDict(extra="allow", strict=True)
    prompt: Annotated[str, Field(min_length=1)]
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    size: Size | None = None
    quality: Word | None = None
    style: Word | None = None
    moderation: Word | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    response_format: Literal["b64_json", "url", ""] | None = None
    output_format: OutputFormat | None = None
    output_compression: Quality | None = None
    seed: Seed | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=64)] | None = None


class TokenDetails(BaseModel):
    """Tokens by modality."""

    text_tokens: int
    image_tokens: int


class ImageUsage(BaseModel):
    """Tokens of a request for images; an image's codes count as one each."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: TokenDetails
    output_tokens_details: TokenDetails


class Unified(BaseModel):
    """What OpenAI's API has no field for: the seed that draws an image again, and what of a request had no effect.

    size: in pixels, whatever was asked for. index: of an image among the n of a request.
    """

    model_config = ConfigDict(extra="allow")
    model: str | None = None
    seed: int | None = None
    size: str | None = None
    index: int | None = None
    ignored: list[str] | None = None


class ImageData(BaseModel):
    """One image, as base64 or as a data URI in `url`."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None
    seed: int
    unified: Unified


class ImageResponse(BaseModel):
    """The answer of `POST /v1/images/generations`."""

    created: int
    data: list[ImageData]
    background: str = "opaque"
    output_format: str
    quality: str = "auto"
    size: str
    usage: ImageUsage
    unified: Unified


class Model(BaseModel):
    """The served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "unified"


class ModelList(BaseModel):
    """`GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """`GET /health`: whether the engine works, and how busy it is."""

    status: Literal["ok", "stopping"]
    active: int
    waiting: int


def without_nulls(model: BaseModel) -> dict[str, Any]:
    """A model as JSON, without what has no value."""
    return model.model_dump(exclude_none=True)
