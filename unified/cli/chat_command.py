"""`unified chat`: on a terminal with a line editor and pictures, else a question a line of the input."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from unified.cli.conversation import Conversation, converse
from unified.cli.options import (
    BaseDir,
    Device,
    GuidanceScale,
    ModelDir,
    Precision,
    Quantize,
    Seed,
    Temperature,
    Threads,
    TopK,
    TopP,
    WaitPolicy,
    choose_hardware,
)
from unified.hardware.console import image_protocol, is_interactive
from unified.inference.arguments import SamplingArguments
from unified.models.image_sampling import ImageSampling


def chat(
    model: ModelDir,
    image: Annotated[list[Path] | None, typer.Option(help="image for the first question; may be repeated")] = None,
    out_dir: Annotated[Path, typer.Option(help="folder of generated images")] = Path("out/chat"),
    seed: Seed = 0,
    max_images: Annotated[int, typer.Option(min=0, help="maximum number of images per answer")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="maximum number of text tokens per answer")] = 256,
    first: Annotated[str, typer.Option(help="question asked before each of yours that comes with an image")] = "",
    show: Annotated[
        Literal["auto", "kitty", "iterm2", "sixel", "blocks", "none"],
        typer.Option(help="how the terminal shows images; auto: as it can, and none where output is no terminal"),
    ] = "auto",
    guidance_scale: GuidanceScale = SamplingArguments.guidance_scale,
    temperature: Temperature = SamplingArguments.temperature,
    top_k: TopK = SamplingArguments.top_k,
    top_p: TopP = SamplingArguments.top_p,
    base: BaseDir = None,
    quantize: Quantize = None,
    device: Device = None,
    precision: Precision = None,
    threads: Threads = None,
    wait_policy: WaitPolicy = None,
) -> None:
    """Chat with a model: one question per line, from the terminal or piped.

    /image FILE adds an image to the next question, /reset starts a new conversation, /quit (or end of input) exits,
    /help lists the other commands. Generated images are saved, shown where the terminal can, and their paths printed.
    Piped input stops at the first error, the terminal does not; there Ctrl-C stops an answer.
    """
    from unified.files.images import read_image

    images = [read_image(path, str(path)) for path in image or []]
    protocol = image_protocol() if show == "auto" else show
    from unified.checkpoints.loading import load
    from unified.inference.chat import Chat

    products = choose_hardware(device, precision, threads, wait_policy)
    sampling = ImageSampling(temperature, top_k, top_p, guidance_scale)
    conversation = Conversation(
        Chat(*load(model, base=base, quantize=quantize), sampling, seed, max_images, max_new_tokens),
        out_dir,
        first,
        protocol,
        products,
    )
    for path, input_image in zip(image or [], images, strict=True):
        conversation.show(input_image, path)
    if not is_interactive():
        converse(conversation, piped_line)
        return
    from unified.cli.line_editor import LineEditor

    typer.echo("/help lists commands; Ctrl-C stops an answer, Ctrl-D leaves")
    converse(conversation, LineEditor().read, interactive=True)


def piped_line() -> str | None:
    """Next line of the input, None at its end; a terminal whose output goes elsewhere gets a prompt."""
    try:
        return input("you> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
