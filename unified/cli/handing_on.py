"""`unified merge`, `publish` and `average`, which hand a model on."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from unified.cli.options import AdapterDir, BaseDir, ModelDir


def merge(
    model: AdapterDir,
    out: Annotated[Path, typer.Option(help="new folder for the full checkpoint")],
    base: BaseDir = None,
) -> None:
    """Write an adapter and its base as one full checkpoint."""
    from unified.checkpoints.publishing import merge as merge_adapter

    merge_adapter(model, out, base)
    typer.echo(str(out))


def publish(
    model: ModelDir,
    out: Annotated[Path, typer.Option(help="new folder for what is published")],
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"], typer.Option(help="dtype of its weights")
    ] = "bfloat16",
    base: Annotated[
        str | None,
        typer.Option(help="folder or hub name of an adapter's base for users, from where they work; default: as now"),
    ] = None,
    made_with: Annotated[
        list[str] | None, typer.Option(help="command that makes the base, for users without it; may be repeated")
    ] = None,
    results: Annotated[
        list[Path] | None, typer.Option(help="result JSON of eval/ for the card, or a folder of them; may be repeated")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="what users call it, for the card: ORG/NAME on the hub; default: OUT")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="file of prompts to draw for the card; default: the training's newest samples")
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(help="as the hub names them: apache-2.0; default: the base's, where its card says"),
    ] = None,
    push: Annotated[bool, typer.Option("--push", help="upload it to the hub under --name, as a private one")] = False,
) -> None:
    """Write an adapter or a checkpoint as others are to have it: small, with a model card, and put it on the hub.

    An adapter is written with path, build commands and digest of its base: loading it or training it further with
    another base is an error. A relative path of the base is looked for from the current folder, from the adapter's and
    from those above it.
    """
    import torch

    from unified.checkpoints.publishing import publish as publish_model
    from unified.files.atomic import check_not_exists
    from unified.files.hub import upload

    if push and name is None:
        raise ValueError("--push needs a name of the hub; give --name ORG/NAME")
    check_not_exists(out)
    samples = None if prompts is None else drawn(model, prompts, base)
    publish_model(model, out, getattr(torch, dtype), base, made_with or (), results or (), name, samples, licence)
    typer.echo(f"{out}: {sum(path.stat().st_size for path in out.rglob('*') if path.is_file()) / 1e6:.1f} MB")
    if push and name is not None:
        typer.echo(upload(out, name))


def drawn(model: Path, prompts: Path, base: str | None) -> Any:
    """A grid of pictures of the prompts in a file, with seed 0, guidance 3 and temperature 0.7."""
    from unified.checkpoints.loading import load
    from unified.checkpoints.publishing import base_here
    from unified.files.jsonl import read_prompts
    from unified.inference.text_to_image import contact_sheet, draw
    from unified.models.image_sampling import ImageSampling

    asked = list(read_prompts(prompts))
    sampling = ImageSampling(temperature=0.7, guidance_scale=3.0)
    images = draw(*load(model, base=base_here(model, base)), asked, sampling, seed=0)
    return contact_sheet(images, asked)


def average(
    models: Annotated[list[Path], typer.Argument(help="folders of LoRA adapters with one start")],
    out: Annotated[Path, typer.Option(help="new folder for the mean")],
    shares: Annotated[
        str | None, typer.Option(help="share of each, comma-separated, summing to 1: 0.25,0.75; default: equal")
    ] = None,
) -> None:
    """Write the mean of adapters: of a start and its fine-tuning, which then forgets less, or of several runs."""
    from unified.checkpoints.averaging import average as average_adapters
    from unified.checkpoints.averaging import read_shares

    average_adapters(models, read_shares(shares, len(models)), out)
    typer.echo(str(out))
