"""The `unified` command. Thin: each of its commands calls other packages.

These import torch, so each command imports them itself and `unified --help` is fast.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from unified.cli import chat_command, handing_on, script_commands, serve_command
from unified.cli.images import BATCH, check_prompts, draw_wanted, save_wanted, wanted_images
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
from unified.hardware.console import show_any_text
from unified.hardware.memory import is_out_of_memory, out_of_memory_line
from unified.hardware.waiting import set_wait_policy
from unified.inference.arguments import SamplingArguments
from unified.models.image_sampling import ImageSampling


def dashed(words: list[str]) -> list[str]:
    """A command line whose flags may have underscores, as scripts and YAML have them, with dashes; not behind `--`."""
    end = words.index("--") if "--" in words else len(words)
    parts = [word.partition("=") for word in words[:end]]
    flags = [name.replace("_", "-") if name.startswith("--") else name for name, _, _ in parts]
    return [flag + equals + value for flag, (_, equals, value) in zip(flags, parts, strict=True)] + words[end:]


RUN, RUN_SETTINGS = "run", {"ignore_unknown_options": True, "allow_interspersed_args": False}
FREE_MEMORY = ("--device cpu where a GPU is full", "ending other programs", "a smaller model")


class Commands(TyperGroup):
    """Reports invalid input as `error: <one line>` with exit status 2; UNIFIED_DEBUG=1 shows the traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        show_any_text()
        set_wait_policy(args)  # before a command loads torch
        words = args if args[:1] == [RUN] else dashed(args)  # a script reads its own
        return self.with_one_line_errors(super().parse_args, ctx, words or ["--help"])

    def invoke(self, ctx: Any) -> Any:
        return self.with_one_line_errors(super().invoke, ctx)

    def with_one_line_errors(self, step: Any, *args: Any) -> Any:
        """Run `step`; its errors exit the program."""
        try:
            return step(*args)
        except FloatingPointError as error:
            typer.echo(f"error: {one_line(error)}", err=True)
            raise typer.Exit(1) from None
        except (typer.TyperException, ValueError, OSError, RuntimeError, MemoryError) as error:  # the first: flags
            full = is_out_of_memory(error)
            if os.environ.get("UNIFIED_DEBUG") == "1" or (isinstance(error, RuntimeError) and not full):
                raise
            line = out_of_memory_line(error, settings=FREE_MEMORY) if full else one_line(error)
            typer.echo(f"error: {line}", err=True)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=Commands,
    help="One model that reads text and images, writes text, and generates images scale by scale.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
main = app


def show_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        from unified.cli.version import __version__

        typer.echo(f"unified {__version__}")
        raise typer.Exit


@app.callback()
def first(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """One model that reads text and images, writes text, and generates images scale by scale."""


@app.command()
def extend(
    llm: Annotated[Path, typer.Option(help="folder or hub name of a causal LM and its tokenizer")],
    vq: Annotated[Path, typer.Option(help="folder of an image tokenizer")],
    out: Annotated[Path, typer.Option(help="new folder for the checkpoint")],
    image_order: Annotated[
        Literal["scales", "raster"], typer.Option(help="scale by scale (VAR) or code by code (Liquid)")
    ] = "scales",
    image_positions: Annotated[
        Literal["shared", "sequential"], typer.Option(help="RoPE positions of an image: one per scale or one per code")
    ] = "shared",
) -> None:
    """Combine an LLM and an image tokenizer into one checkpoint for training."""
    from unified.checkpoints.extension import extend as extend_llm
    from unified.checkpoints.extension import template_findings
    from unified.checkpoints.language_models import left_behind
    from unified.reports.endings import say_end

    model = extend_llm(llm, vq, out, image_order, image_positions)
    for line in filter(None, [left_behind(llm)]):
        typer.echo(line)
    for finding in template_findings(llm):
        typer.echo(f"chat template mended, {finding}")
    ids = model.config.vocabulary.image_ids
    typer.echo(f"{out}: {ids.start} text ids and {len(ids)} image codes, {model.config.image_length} codes per image")
    encode = f"unified run data_prep/encode_images.py --vq {vq} --inputs rows.jsonl --out data/encoded"
    say_end(out, {}, encode, f"unified run recipes/sft.py --config mine.yaml --model {out} --train_files data/encoded")


@app.command()
def draw(
    model: ModelDir,
    out: Annotated[Path, typer.Option(help="image file to write; several are OUT_0.png, OUT_1.png, ...")],
    prompt: Annotated[str | None, typer.Argument(help="text prompt of the image")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="file of prompts, one a line or JSONL with `prompt`; OUT_0001.png, ...")
    ] = None,
    seed: Seed = 0,
    count: Annotated[int, typer.Option(min=1, help="images of a prompt; all have seeds SEED, SEED + 1, ...")] = 1,
    guidance_scale: GuidanceScale = SamplingArguments.guidance_scale,
    temperature: Temperature = SamplingArguments.temperature,
    top_k: TopK = SamplingArguments.top_k,
    top_p: TopP = SamplingArguments.top_p,
    strip: Annotated[
        bool, typer.Option("--strip", help="also write OUT_scales.png, the image after each scale")
    ] = False,
    base: BaseDir = None,
    quantize: Quantize = None,
    device: Device = None,
    precision: Precision = None,
    threads: Threads = None,
    wait_policy: WaitPolicy = None,
) -> None:
    """Generate an image of PROMPT, or one of every prompt in a file; model, prompt and seed decide the image."""
    from unified.files.images import image_format

    image_format(out)  # raises an error before anything is loaded
    wanted = wanted_images(prompt, prompts, out, count)
    from unified.checkpoints.loading import load

    products = choose_hardware(device, precision, threads, wait_policy)
    unified_model, processor = load(model, base=base, quantize=quantize)
    if strip and unified_model.config.image_order == "raster":
        raise ValueError(f"{model} has image_order raster; --strip needs image_order scales")
    check_prompts(unified_model, processor, wanted)
    sampling = ImageSampling(temperature, top_k, top_p, guidance_scale)
    size = 1 if prompts is None else BATCH
    for start in range(0, len(wanted), size):
        batch = wanted[start : start + size]
        with products():
            images = draw_wanted(unified_model, processor, batch, sampling, seed + start, strip)
        save_wanted(batch, images, strip)


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="result JSONs, or folders of them")],
    out: Annotated[Path, typer.Option(help="page to write: .html (with images) or .md")],
) -> None:
    """Write the scores of eval/ scripts to one page: models by metrics, with the details of each score."""
    from unified.reports.results_page import write_report

    written = write_report(results, out)
    typer.echo(f"{out}: {written.results} results")
    if written.note:
        typer.echo(written.note, err=True)


app.command()(chat_command.chat)
app.command()(handing_on.merge)
app.command()(handing_on.publish)
app.command()(handing_on.average)
app.command()(serve_command.serve)
app.command()(script_commands.ls)
app.command()(script_commands.cp)
app.command(RUN, context_settings=RUN_SETTINGS)(script_commands.run)


def one_line(error: Exception) -> str:
    """The message of an error, without line breaks."""
    if isinstance(error, typer.TyperException):
        return " ".join(f"{error.format_message().rstrip('.?')}; see --help".split())
    return " ".join(str(error).split())


if __name__ == "__main__":
    main()
