"""The `unified` command: extend, draw, chat, merge, publish, report. Thin: each command calls the package's rooms.

Those rooms load torch, so each command imports them itself and `unified --help` answers at once.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from unified.hardware.waiting import set_wait_policy

if TYPE_CHECKING:
    from PIL import Image

    from unified.inference.chat import Chat
    from unified.models.generation import ImageSampling


class Commands(TyperGroup):
    """Turns bad input into `error: <one line>` and exit status 2; UNIFIED_DEBUG=1 shows the traceback instead."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        set_wait_policy(args)  # before a command loads torch
        return self.in_one_line(super().parse_args, ctx, args or ["--help"])

    def invoke(self, ctx: Any) -> Any:
        return self.in_one_line(super().invoke, ctx)

    def in_one_line(self, step: Any, *args: Any) -> Any:
        """What `step` returns; its errors leave the program."""
        try:
            return step(*args)
        except (typer.TyperException, ValueError, OSError) as error:  # the first is what flags are refused with
            if os.environ.get("UNIFIED_DEBUG") == "1":
                raise
            typer.echo(f"error: {one_line(error)}", err=True)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=Commands,
    help="One model that reads text and images, writes text, and paints images scale by scale.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
main = app

ModelDir = Annotated[Path, typer.Option("--model", help="folder of a checkpoint, or of a LoRA adapter")]
Seed = Annotated[int, typer.Option(help="seed of the painted images")]
Guidance = Annotated[float | None, typer.Option(min=0, help="weight of the prompt against no prompt; 1 is off")]
Temperature = Annotated[float | None, typer.Option(min=0, help="of the image codes; 0 takes the likeliest")]
TopK = Annotated[int | None, typer.Option(min=0, help="choose among so many codes; 0 is all")]
TopP = Annotated[float | None, typer.Option(min=0, max=1, help="choose among codes of this probability together")]


@app.command()
def extend(
    llm: Annotated[Path, typer.Option(help="folder of a causal LM and its tokenizer")],
    vq: Annotated[Path, typer.Option(help="folder of an image tokenizer")],
    out: Annotated[Path, typer.Option(help="new folder for the checkpoint")],
    image_order: Annotated[
        Literal["scales", "raster"], typer.Option(help="scale by scale (VAR) or code by code (Liquid)")
    ] = "scales",
    image_positions: Annotated[
        Literal["shared", "sequential"], typer.Option(help="RoPE positions of an image: one a scale or one a code")
    ] = "shared",
) -> None:
    """Join an LLM and an image tokenizer into one checkpoint that can be trained."""
    from unified.checkpoints.extension import extend as extend_llm

    model = extend_llm(llm, vq, out, image_order, image_positions)
    ids = model.config.vocabulary.image_ids
    typer.echo(f"{out}: {ids.start} text ids and {len(ids)} image codes, {model.config.image_length} codes an image")


@app.command()
def draw(
    prompt: Annotated[str, typer.Argument(help="what to paint")],
    model: ModelDir,
    out: Annotated[Path, typer.Option(help="picture to write; several are OUT_0.png, OUT_1.png, ...")],
    seed: Seed = 0,
    count: Annotated[int, typer.Option(min=1, help="pictures, with seeds SEED, SEED + 1, ...")] = 1,
    guidance_scale: Guidance = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    strip: Annotated[bool, typer.Option("--strip", help="also write OUT_scales.png, scale by scale")] = False,
) -> None:
    """Paint PROMPT; the same model, prompt and seed give the same picture."""
    from unified.files.images import picture_format

    picture_format(out)  # an error, before anything is loaded
    from unified.checkpoints.loading import load
    from unified.inference.chat import remaining_text_tokens
    from unified.inference.text_to_image import contact_sheet, draw_by_scale
    from unified.inference.text_to_image import draw as draw_prompts

    unified_model, processor = load(model)
    if strip and unified_model.config.image_order == "raster":
        raise ValueError(f"{model} paints code by code (image_order raster); --strip needs image_order scales")
    remaining_text_tokens(unified_model, processor.prompt_ids([{"role": "user", "content": prompt}]), images=1)
    sampling = image_sampling(guidance_scale, temperature, top_k, top_p)
    for index in range(count):
        path = out if count == 1 else suffixed(out, str(index))
        if strip:
            (steps,) = draw_by_scale(unified_model, processor, [prompt], sampling, seed + index)
            names = [f"scale {scale + 1}" for scale in range(len(steps))]
            save(contact_sheet(steps, names, columns=len(steps)), suffixed(path, "scales"))
            save(steps[-1], path)
        else:
            save(draw_prompts(unified_model, processor, [prompt], sampling, seed + index)[0], path)


@app.command()
def chat(
    model: ModelDir,
    image: Annotated[list[Path] | None, typer.Option(help="picture for the first question; may be repeated")] = None,
    out_dir: Annotated[Path, typer.Option(help="folder for painted pictures")] = Path("out/chat"),
    seed: Seed = 0,
    max_images: Annotated[int, typer.Option(min=0, help="most pictures in one answer")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="most text tokens in one answer")] = 256,
    first: Annotated[str, typer.Option(help="asked before your question where it comes with a picture")] = "",
    guidance_scale: Guidance = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
) -> None:
    """Talk to a model: one question a line, from the terminal or piped.

    /image FILE puts a picture into the next question, /reset begins anew, /quit (or end of input) leaves. Painted
    pictures are saved and their paths printed. Piped input stops at the first error, the terminal goes on.
    """
    from unified.files.images import read_image

    pictures = [read_image(path, str(path)) for path in image or []]
    from unified.checkpoints.loading import load
    from unified.inference.chat import Chat

    sampling = image_sampling(guidance_scale, temperature, top_k, top_p)
    talk = Chat(*load(model), sampling, seed, max_images, max_new_tokens)
    for picture in pictures:
        talk.show(picture)
    while (line := read_line()) not in (None, "/quit"):
        try:
            take(talk, str(line), out_dir, first)
        except ValueError as error:
            if not sys.stdin.isatty():
                raise
            typer.echo(f"error: {one_line(error)}", err=True)


@app.command()
def merge(
    model: Annotated[Path, typer.Option("--model", help="folder of a LoRA adapter")],
    out: Annotated[Path, typer.Option(help="new folder for the full checkpoint")],
) -> None:
    """Write an adapter and its base as one full checkpoint."""
    from unified.checkpoints.publishing import merge as merge_adapter

    merge_adapter(model, out)
    typer.echo(str(out))


@app.command()
def publish(
    model: Annotated[Path, typer.Option("--model", help="folder of a LoRA adapter")],
    out: Annotated[Path, typer.Option(help="new folder for the published adapter")],
    dtype: Annotated[Literal["bfloat16", "float16", "float32"], typer.Option(help="of its weights")] = "bfloat16",
    base: Annotated[
        str | None, typer.Option(help="where users have the base, seen from where they work; default: as now")
    ] = None,
    made_with: Annotated[
        list[str] | None, typer.Option(help="command that makes the base, for those without it; may be repeated")
    ] = None,
) -> None:
    """Write an adapter small enough for a repository, which knows its base: where it lies, how it is made, its digest.

    Whoever loads it or goes on training it with another base is told so. A relative path of the base starts at the
    current folder, for PEFT as for this package.
    """
    import torch

    from unified.checkpoints.publishing import publish as publish_adapter

    publish_adapter(model, out, getattr(torch, dtype), base, made_with or ())
    typer.echo(f"{out}: {sum(path.stat().st_size for path in out.iterdir()) / 1e6:.1f} MB")


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="result JSONs, or folders that hold some")],
    out: Annotated[Path, typer.Option(help="page to write: .html (with pictures) or .md")],
) -> None:
    """Put the scores of eval/ scripts into one page: models by metrics, and what each score is made of."""
    from unified.reports.results_page import write_report

    count = write_report(results, out)
    typer.echo(f"{out}: {count} results")


def read_line() -> str | None:
    """Next line of the user, None at the end; the prompt is shown to people only."""
    try:
        return input("you> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def take(talk: "Chat", line: str, out_dir: Path, first: str = "") -> None:
    """Do what one line of a chat says: a command, or a question, behind `first` where it comes with a picture."""
    from unified.files.images import read_image

    command, _, rest = line.partition(" ")
    if command == "/image":
        talk.show(read_image(rest.strip(), rest.strip()))
        typer.echo(f"[{rest.strip()} goes with your next question]")
    elif command == "/reset":
        talk.reset()
        typer.echo("[a new conversation]")
    elif line.startswith("/"):
        raise ValueError(f"unknown command {command!r}; there are /image FILE, /reset and /quit")
    elif line:
        for question in [first, line] if first and talk.pending_images else [line]:
            put(talk, question, out_dir)


def put(talk: "Chat", question: str, out_dir: Path) -> None:
    """Ask, and print what is answered: text as it comes, pictures by the paths they are saved at."""
    parts = talk.ask(question, lambda text: typer.echo(text, nl=False))
    if any(part["type"] == "text" for part in parts):
        typer.echo()  # the end of the line that was streamed
    for part in parts:
        if part["type"] == "image":
            typer.echo(f"[image: {save_painted(talk, part['codes'], out_dir)}]")


def save_painted(talk: "Chat", codes: Any, out_dir: Path) -> Path:
    """Write a painted picture under the folder's next free number; returns its path."""
    from unified.inference.text_to_image import codes_to_images

    taken = [int(path.stem) for path in out_dir.glob("*.png") if path.stem.isdecimal()]
    path = out_dir / f"{max(taken, default=-1) + 1:03d}.png"
    save(codes_to_images(talk.model, codes[None])[0], path, announce=False)
    return path


def image_sampling(
    guidance_scale: float | None, temperature: float | None, top_k: int | None, top_p: float | None
) -> "ImageSampling":
    """Sampling with what was given; the defaults of the rest are `ImageSampling`'s."""
    from unified.models.generation import ImageSampling

    options = {"guidance_scale": guidance_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    return ImageSampling(**{name: value for name, value in options.items() if value is not None})  # type: ignore[arg-type]


def suffixed(path: Path, word: str) -> Path:
    """`x.png` as `x_word.png`."""
    return path.with_stem(f"{path.stem}_{word}")


def save(picture: "Image.Image", path: Path, announce: bool = True) -> None:
    """Write `picture`, and say where."""
    from unified.files.images import write_image

    write_image(picture, path)
    if announce:
        typer.echo(str(path))


def one_line(error: Exception) -> str:
    """The message of an error without its line breaks."""
    if isinstance(error, typer.TyperException):
        return " ".join(f"{error.format_message().rstrip('.?')}; see --help".split())
    return " ".join(str(error).split())


if __name__ == "__main__":
    main()
