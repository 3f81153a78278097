"""Arguments of recipes/train_detector.py."""

from dataclasses import dataclass

from unified.arguments.fields import SHARE, CheckedArguments, arg, at_least
from unified.evaluation.detector import DetectorConfig
from unified.training.tokenizer_arguments import SEED, AveragedTrainingArguments


@dataclass
class DetectorArguments(CheckedArguments):
    """Shape of the Scenes detector; names and defaults are DetectorConfig's."""

    channels: list[int] = arg(list(DetectorConfig.channels), "widths at strides 4 and 8", at_least(1))
    num_blocks: list[int] = arg(
        list(DetectorConfig.num_blocks),
        "residual blocks at strides 4 and 8; the last ones see the whole object",
        at_least(1),
    )


@dataclass
class DetectorTrainingArguments(AveragedTrainingArguments):
    """One run of recipes/train_detector.py; precision and processes belong to `accelerate launch`."""

    vq: str = arg("weights/scenes-vq", "image tokenizer whose decoded images will be scored")
    output_dir: str = arg("out/detector", "where checkpoints, the log and the trained detector go")
    tidy_share: float = arg(0.5, "share of scenes with tidy layout, the others are free", SHARE)
    torn_share: float = arg(0.35, "share of images patched together from two, so that fragments are no objects", SHARE)
    tokenizer_share: float = arg(
        0.5, "share of images reconstructed by the tokenizer; 0.5 costs half a step more", SHARE
    )
    max_steps: int = arg(6000, "optimizer steps; the cosine schedule ends here", at_least(1))
    batch_size: int = arg(
        32, "images per process and step; at least 16, or scrambled codes are not mixed enough", at_least(1)
    )
    learning_rate: float = arg(2e-3, "peak learning rate", at_least(0))
    warmup_steps: int = arg(200, "steps of linear warm-up; the rate then falls to 0 along a cosine", at_least(0))
    weight_decay: float = arg(0.02, "AdamW's decay of convolution weights", at_least(0))
    eval_steps: int = arg(1000, "steps between evaluations", at_least(1))
    eval_scenes: int = arg(50, "scenes of every task in these", at_least(1))
    ceiling_scenes: int = arg(400, "scenes of every task in the final ceilings, written to ceilings.json", at_least(1))
    save_steps: int = arg(500, "steps between resumable checkpoints; only the newest is kept", at_least(1))
    num_workers: int = arg(0, "processes that render; worth it where a GPU would wait for them", at_least(0))
    seed: int = arg(0, "seed of weights, scenes and codes", SEED)
