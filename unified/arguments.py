"""What recipes can be told: dataclasses whose fields are YAML keys, command-line flags and help texts at once.

`parse` reads `--config FILE.yaml` first and lets flags override it. `run_main` turns bad input into one line on
stderr and exit status 2; set `UNIFIED_DEBUG=1` to see the traceback instead.
"""

import copy
import difflib
import json
import os
import sys
from argparse import Action, ArgumentTypeError
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import yaml
from transformers import HfArgumentParser, TrainingArguments
from trl import DPOConfig


class OneLineParser(HfArgumentParser):
    """Raises ValueError where argparse would print its usage and leave."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see --help")


def parse(dataclass_types: tuple[Any, ...], argv: list[str] | None = None) -> tuple[Any, ...]:
    """Fill `dataclass_types` from `--config FILE.yaml` and flags; a flag wins over the file, the file over defaults.

    Flags may be spelt with underscores or dashes. Lists are `--patch_nums 1 2 4`, dicts are JSON.
    Raises ValueError: missing or malformed file, unknown key or flag (with the nearest valid ones), bad or no value.
    """
    parser = OneLineParser(dataclass_types, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.yaml", help="file whose keys become defaults")
    _read_dicts_as_json(parser)
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    argv = sys.argv[1:] if argv is None else list(argv)
    _apply_config(parser, actions, argv)
    *parsed, rest = parser.parse_args_into_dataclasses(
        args=argv, return_remaining_strings=True, look_for_args_file=False
    )
    if rest:
        name = rest[0].lstrip("-").split("=")[0].replace("-", "_")
        raise ValueError(f"unknown argument {rest[0]!r}; {nearest(name, actions)}")
    return tuple(parsed[: len(dataclass_types)])


def run_main(main: Callable[[], None]) -> None:
    """Call `main`; a ValueError or OSError becomes `error: <one line>` on stderr and exit status 2."""
    try:
        main()
    except (ValueError, OSError) as error:
        if os.environ.get("UNIFIED_DEBUG") == "1":
            raise
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(2)


def check_least(settings: Any, **least: float) -> None:
    """Raise ValueError for the first of these fields of `settings` that is below its least value."""
    for name, value in least.items():
        if getattr(settings, name) < value:
            raise ValueError(f"--{name} {getattr(settings, name)}; give at least {value}")


def _apply_config(parser: HfArgumentParser, actions: dict[str, Action], argv: list[str]) -> None:
    # The file has to be known before the real parse, which needs its values as defaults.
    finder = OneLineParser((), add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    path = finder.parse_known_args(argv)[0].config
    for key, value in ({} if path is None else _read_yaml(path)).items():
        if key not in actions:
            raise ValueError(f"unknown key {key!r} in {path}; {nearest(str(key), actions)}")
        parser.set_defaults(**{key: _checked(actions[key], value, path)})
        actions[key].required = False


def _read_yaml(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        folder = Path(path).parent
        others = sorted(str(p) for p in folder.glob("*.yaml")) if folder.is_dir() else []
        remedy = nearest(path, others) if others else f"there is no .yaml in {folder}/; give another path"
        raise ValueError(f"config file {path} does not exist; {remedy}")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    if values is not None and not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected `key: value` lines")
    return values or {}


def _checked(action: Action, value: Any, path: str) -> Any:
    # YAML reads 1e-3 (no dot) as a string, and would let `batch_size: many` through to the training loop.
    if value is None or (isinstance(value, dict) and action.type in (json_value, str)):
        return value
    if isinstance(value, list) != (action.nargs == "+"):
        kind = "a list" if action.nargs == "+" else "one value"
        raise ValueError(f"{action.dest}: {value!r} in {path}: expected {kind}")
    if isinstance(value, list):
        return [item if isinstance(item, list) else _converted(action, item, path) for item in value]
    return _converted(action, value, path)


def _converted(action: Action, value: Any, path: str) -> Any:
    convert = cast(Callable[[Any], Any], action.type or str)
    try:
        result = convert(value)
    except (ValueError, TypeError, ArgumentTypeError):
        raise ValueError(f"{action.dest}: {value!r} in {path}: expected {convert.__name__}") from None
    if action.type is int and result != value and not isinstance(value, str):
        raise ValueError(f"{action.dest}: {value!r} in {path}: expected int")
    if action.choices is not None and result not in action.choices:
        raise ValueError(f"{action.dest}: {value!r} in {path}: choose from {', '.join(map(str, action.choices))}")
    return result


def _read_dicts_as_json(parser: HfArgumentParser) -> None:
    for action in parser._actions:
        if action.type is dict:
            action.type = json_value


def json_value(text: str) -> Any:
    """What JSON on the command line says."""  # argparse calls the type by this name where it says nothing
    return json.loads(text)


def nearest(name: str, valid: Iterable[str]) -> str:
    """For an error's remedy: the valid names most like `name`, or all of them."""
    valid = list(valid)
    close = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
    return f"nearest: {', '.join(close)}" if close else f"valid: {', '.join(sorted(valid)) or 'none'}"


def _arg(default: Any, help: str) -> Any:  # noqa: A002 - argparse's word
    if isinstance(default, list | dict):
        return field(metadata={"help": help}, default_factory=lambda: copy.copy(default))
    return field(metadata={"help": help}, default=default)


@dataclass
class TokenizerArguments:
    """Shape of the image tokenizer; the names are VQConfig's."""

    architecture: Literal["small", "var"] = _arg("small", "small: stride-4 stem, for CPUs; var: VAR's own network")
    image_size: int = _arg(64, "side of the square images in pixels")
    channels: list[int] = _arg([96, 152], "width of every resolution, fine to coarse; each step halves the sides")
    num_res_blocks: int = _arg(1, "residual blocks per resolution of the encoder; the decoder has one more")
    codebook_size: int = _arg(1024, "number of codes V; each is one more row in the LLM's vocabulary")
    code_dim: int = _arg(16, "width C of a code")
    patch_nums: list[int] = _arg([1, 2, 4, 8], "sides of the scales, coarse to fine; the last one is the latent grid")
    phi_count: int = _arg(4, "number of phi convolutions the scales share")
    phi_ratio: float = _arg(0.5, "share of the convolution in phi(h) = (1 - r) h + r conv(h)")
    cosine: bool = _arg(False, "nearest code by cosine instead of Euclidean distance (VAR's using_znorm)")
    beta: float = _arg(0.25, "weight of the commitment term inside the VQ loss")


@dataclass
class TokenizerLossArguments:
    """What the image tokenizer is trained on; a weight of 0 switches its term off."""

    l1_weight: float = _arg(0.2, "weight of |x - reconstruction|; sharper edges than l2")
    l2_weight: float = _arg(1.0, "weight of the squared error, which is what PSNR measures")
    vq_weight: float = _arg(1.0, "weight of the VQ loss that moves codebook and encoder together")
    scale_dropout: float = _arg(0.0, "share of images decoded without their finer scales, so that coarse codes count")
    lpips_weight: float = _arg(0.0, "weight of the perceptual LPIPS distance; needs lpips_path")
    lpips_path: str | None = _arg(None, "file with torch.save(lpips.LPIPS(net='vgg').state_dict(), FILE)")
    gan_weight: float = _arg(0.0, "weight of the patch discriminator, on top of VQGAN's adaptive weight")
    gan_start_step: int = _arg(10_000, "step from which the discriminator counts; before it L1/L2 rule alone")
    gan_learning_rate: float = _arg(1e-4, "learning rate of the discriminator")
    gan_base_channels: int = _arg(32, "width of the discriminator's first layer")


@dataclass
class TokenizerTrainingArguments:
    """One run of recipes/train_vq.py; precision and processes belong to `accelerate launch`."""

    data_dir: str = _arg("data/scenes", "folder of *.parquet with an `images` column, or of png/jpg files")
    output_dir: str = _arg("out/vq", "where checkpoints, logs, grids and the trained tokenizer go")
    max_steps: int = _arg(10_000, "optimizer steps; the cosine schedule ends here")
    max_minutes: float | None = _arg(None, "stop and save after this wall time; the schedule is not shortened")
    batch_size: int = _arg(64, "images per process and step")
    learning_rate: float = _arg(1e-3, "peak learning rate")
    final_learning_rate: float = _arg(1e-5, "learning rate at max_steps, reached along a cosine")
    warmup_steps: int = _arg(100, "steps of linear warm-up")
    weight_decay: float = _arg(0.0, "AdamW's decay of convolution weights (never of codebook, norms, biases)")
    max_grad_norm: float = _arg(1.0, "gradients are clipped to this norm")
    ema_decay: float = _arg(0.998, "decay of the averaged weights that are evaluated and saved; 0 saves the raw ones")
    revive_after_steps: int = _arg(100, "a code no scale used for this many steps restarts from a feature; 0 never")
    revive_until: float = _arg(0.7, "share of max_steps after which the codebook is left in peace")
    log_steps: int = _arg(50, "steps between log lines (the only steps that wait for the device)")
    eval_steps: int = _arg(500, "steps between evaluations on held-out images")
    eval_images: int = _arg(256, "images held out of training")
    grid_steps: int = _arg(1000, "steps between picture grids, originals over reconstructions")
    save_steps: int = _arg(1000, "steps between resumable checkpoints")
    save_total_limit: int = _arg(1, "checkpoints kept; older ones are deleted")
    resume: bool = _arg(False, "continue from the newest checkpoint in output_dir, or start when there is none")
    cache_gb: float = _arg(2.0, "decode all images once when they fit into this much memory, else on the fly")
    num_workers: int = _arg(0, "data loader processes; useful only when images are decoded on the fly")
    seed: int = _arg(0, "seed of weights, held-out split, order and code revival")


@dataclass
class ModelArguments:
    """The checkpoint recipes start from."""

    model: str = _arg("out/unified", "folder made by `unified extend`, or an earlier stage's output or adapter")
    dtype: Literal["auto", "float32", "bfloat16"] = _arg(
        "float32", "dtype of the weights; float32 masters with autocast train best, bfloat16 halves the memory"
    )
    attn_implementation: Literal["sdpa", "grouped", "eager"] | None = _arg(
        None, "None: on a CPU grouped (unified/attention.py), elsewhere the backbone's own choice"
    )
    compile_layers: bool = _arg(False, "let torch compile the layers: half a minute first, then faster; needs g++")
    modality_stride: int = _arg(1, "compute -log p(image) on every n-th image position, n times weighted; saves time")
    text_loss_weight: float = _arg(1.0, "weight of text tokens in the loss")
    scale_loss_weights: list[float] | None = _arg(None, "weight of every scale's codes in the loss; None is all 1")


@dataclass
class DataArguments:
    """What is trained on: encoded rows, see data_prep/encode_images.py."""

    train_files: list[str] = _arg([], "encoded parquet files or folders, JSONL of text; named twice: twice as often")
    eval_files: list[str] = _arg([], "the same, held out; empty: no evaluation")
    max_length: int = _arg(512, "positions of a packed row; a longer example is an error before training")
    pack: bool = _arg(True, "put several examples in a row of max_length; without, one example a row")
    caption_dropout: float = _arg(0.1, "share of pictures trained without their caption, for guidance")
    last_scale_fraction: float = _arg(1.0, "share of an image's last scale trained per step; less is faster per image")


@dataclass
class TuningArguments:
    """What recipes/sft.py and recipes/dpo.py are told alike."""

    train_text_rows: bool = _arg(False, "let `full` move the old rows of the embedding too; language drifts sooner")
    lora_positions: Literal["all", "image", "onward", "apart"] | None = _arg(
        None, "where updates act, see unified/image_lora.py; only `all` merges; None: as the adapter `model`, else all"
    )
    lora_rank: int | None = _arg(None, "rank of the updates; None: as the adapter `model`, else 32")
    lora_alpha: int | None = _arg(None, "scale is alpha / rank; None: as the adapter `model`, else 64")
    lora_target_modules: list[str] | None = _arg(
        None, "linear layers by name's ending; None: as the adapter `model`, else all of attention and MLP"
    )
    lora_dropout: float = _arg(0.0, "dropout in front of the updates; also of an adapter that goes on")
    resume: bool = _arg(False, "continue from the newest checkpoint in output_dir, or start where there is none")
    sample_prompts: list[str] = _arg([], "prompts drawn at every evaluation")
    sample_temperature: float = _arg(1.0, "temperature of these pictures")
    sample_top_k: int = _arg(0, "of how many codes they choose; 0: all")
    sample_guidance: float = _arg(3.0, "their classifier-free guidance; 1 is none")
    remove_unused_columns: bool = _arg(False, "must stay off: the collator needs every column")


@dataclass
class UnifiedTrainingArguments(TuningArguments, TrainingArguments):
    """HF's TrainingArguments and what ours add; see transformers for the inherited ones."""

    output_dir: str = _arg("out/sft", "where checkpoints, logs, samples and the result go")
    tuning: Literal["full", "lora", "align"] = _arg(
        "full", "full: all weights; lora: low-rank updates and the new parts; align: the new parts alone"
    )
    new_parts_learning_rate: float = _arg(2e-3, "learning rate of image embedding and matrix rows")
    code_noise: float = _arg(0.0, "up to this share of all but the last scale's codes is fed wrong, to learn to mend")
    max_minutes: float | None = _arg(None, "stop and save after this wall time; the schedule is not shortened")
    speed_steps: int = _arg(0, "above 0: measure the speed of so many steps, write speed.json and train no further")
    label_names: list[str] | None = _arg(["labels"], "HF's; PEFT hides the model's own")
    report_to: str = _arg("tensorboard", "HF's; one tracker or none")


@dataclass
class ScratchArguments:
    """One run of recipes/scratch.py: which scenes are rendered, how they are trained on, what is asked at the end."""

    out_dir: str = _arg("out/demo-scratch", "folder for everything; a second run continues where the first stopped")
    llm: str = _arg("out/smollm2", "where the converted SmolLM2 lies or is put")
    vq: str = _arg("weights/scenes-vq", "image tokenizer")
    classes: list[str] = _arg([], "object classes of the scenes; empty: all 68")
    colours: list[str] = _arg([], "colours of the scenes; empty: all ten")
    layout: Literal["free", "tidy"] = _arg("tidy", "tidy: the prompt says where an object is; free: anywhere")
    tags: str = _arg("", "scene tasks with weights, as data_prep/render_scenes.py takes them; empty: all six")
    kinds: str = _arg("draw:0.8,ask:0.15,describe:0.05", "kinds of conversation with weights")
    train_scenes: int = _arg(8000, "scenes rendered for training")
    replay_repeats: int = _arg(1, "how often the text replay's rows come for each scene's once; keeps the language")
    eval_scenes: int = _arg(128, "scenes rendered for evaluation, with other seeds")
    sft_configs: list[str] = _arg([], "YAMLs of recipes/sft.py, run one after the other, each from the one before")
    question: str = _arg("What is the capital of France?", "text question asked at the end")
    image_question: str = _arg("What color is the apple?", "question about a picture that is rendered for it")
    prompts: list[str] = _arg([], "prompts drawn at the end")
    guidance: float = _arg(3.0, "classifier-free guidance of these pictures")
    temperature: float = _arg(0.7, "temperature of these pictures")
    top_k: int = _arg(0, "of how many codes they choose; 0: all")
    seed: int = _arg(0, "seed of scenes and pictures")


@dataclass
class DetectorArguments:
    """Shape of the Scenes detector; the names are DetectorConfig's."""

    channels: list[int] = _arg([64, 112], "widths at strides 4 and 8")
    num_blocks: list[int] = _arg([2, 3], "residual blocks at strides 4 and 8; the last ones see the whole object")


@dataclass
class DetectorTrainingArguments:
    """One run of recipes/train_detector.py; precision and processes belong to `accelerate launch`."""

    vq: str = _arg("weights/scenes-vq", "image tokenizer whose pictures will be judged")
    output_dir: str = _arg("out/detector", "where checkpoints, the log and the trained detector go")
    tidy_share: float = _arg(0.5, "share of scenes with tidy layout, the others are free")
    torn_share: float = _arg(0.35, "share of pictures patched together from two, so that ruins are no objects")
    tokenizer_share: float = _arg(0.5, "share of pictures seen through the tokenizer; 0.5 costs half a step more")
    max_steps: int = _arg(6000, "optimizer steps; the cosine schedule ends here")
    max_minutes: float | None = _arg(None, "stop and save after this wall time; the schedule is not shortened")
    batch_size: int = _arg(32, "pictures per process and step; at least 16, or scrambled codes are not mixed enough")
    learning_rate: float = _arg(2e-3, "peak learning rate")
    warmup_steps: int = _arg(200, "steps of linear warm-up; the rate then falls to 0 along a cosine")
    weight_decay: float = _arg(0.02, "AdamW's decay of convolution weights")
    max_grad_norm: float = _arg(1.0, "gradients are clipped to this norm")
    ema_decay: float = _arg(0.998, "decay of the averaged weights that are evaluated and saved")
    log_steps: int = _arg(50, "steps between log lines")
    eval_steps: int = _arg(1000, "steps between evaluations")
    eval_scenes: int = _arg(50, "scenes of every task in these")
    ceiling_scenes: int = _arg(400, "scenes of every task in the final ceilings, written to ceilings.json")
    save_steps: int = _arg(500, "steps between resumable checkpoints; only the newest is kept")
    resume: bool = _arg(False, "continue from the newest checkpoint in output_dir, or start when there is none")
    num_workers: int = _arg(0, "processes that render; worth it where a GPU would wait for them")
    seed: int = _arg(0, "seed of weights, scenes and codes")


@dataclass
class DpoArguments(TuningArguments, DPOConfig):
    """One run of recipes/dpo.py: TRL's DPOConfig and what ours add; see trl for the inherited ones."""

    output_dir: str = _arg("out/dpo", "where checkpoints, logs, samples and the result go")
    model: str = _arg("out/sft", "checkpoint or adapter to improve; as it is now, it is the reference too")
    dtype: Literal["auto", "float32", "bfloat16"] = _arg("float32", "dtype of the weights, see recipes/sft.py")
    train_files: list[str] = _arg([], "pairs of data_prep/build_preferences.py, or in TRL's formats; files or folders")
    eval_files: list[str] = _arg([], "the same, held out")
    held_out_share: float = _arg(0.0, "share of the training prompts kept for evaluation; not with eval_files")
    max_length: int = _arg(512, "positions of prompt and answer; a longer pair is an error before training")
    num_scales: int | None = _arg(None, "codes of so many scales, coarse to fine, count in log-probs; None: all")
    tuning: Literal["full", "lora"] = _arg("lora", "lora: of the backbone alone; full: takes a second model")
    kl_pairs: int = _arg(16, "pairs of every modality on which evaluation measures the KL to the reference")
    bf16: bool = _arg(False, "TRL's default is on; here as in recipes/sft.py")
    activation_checkpointing: bool | None = _arg(False, "TRL's default is on; here as in recipes/sft.py")
    report_to: str = _arg("tensorboard", "HF's; one tracker or none")
