"""Arguments of recipes/train_vq.py."""

from dataclasses import dataclass
from typing import Literal

from unified.arguments.fields import SHARE, Bounds, CheckedArguments, above, arg, at_least
from unified.arguments.needs import Needs, WithNeeds, check_needs
from unified.files.images import SIDE_RULE, Fit
from unified.image_tokenizer.configuration import VQConfig

SEED = Bounds(at_least=0, below=2**32)  # numpy's


@dataclass
class TokenizerArguments(CheckedArguments):
    """Architecture of the image tokenizer; names and defaults are those of VQConfig."""

    architecture: Literal["small", "var"] = arg(
        VQConfig.architecture, "small: stride-4 stem, for CPUs; var: VAR's own network"
    )
    image_size: int = arg(VQConfig.image_size, "side of the square images in pixels", at_least(1), SIDE_RULE)
    channels: list[int] = arg(
        list(VQConfig.channels), "width of every resolution, fine to coarse; each step halves the sides", at_least(1)
    )
    num_res_blocks: int = arg(
        VQConfig.num_res_blocks, "residual blocks per resolution of the encoder; the decoder has one more", at_least(0)
    )
    codebook_size: int = arg(
        VQConfig.codebook_size, "number of codes V; each adds one row to the LLM's vocabulary", at_least(2)
    )
    code_dim: int = arg(VQConfig.code_dim, "dimension C of a code", at_least(1))
    patch_nums: list[int] = arg(
        [],
        "sides of the scales, coarse to fine, up to the latent grid; by default 1 2 4 and so on",
        at_least(1),
    )
    upsampling: Literal["shuffle", "bilinear"] = arg(
        "bilinear", "of the small decoder; shuffle (until November 2026) leaves a lattice that training has to close"
    )
    phi_count: int = arg(VQConfig.phi_count, "number of phi convolutions the scales share", at_least(1))
    phi_ratio: float = arg(VQConfig.phi_ratio, "share of the convolution in phi(h) = (1 - r) h + r conv(h)", SHARE)
    cosine: bool = arg(VQConfig.cosine, "nearest code by cosine instead of Euclidean distance (VAR's using_znorm)")
    beta: float = arg(VQConfig.beta, "weight of the commitment term inside the VQ loss", at_least(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.patch_nums = list(VQConfig(**vars(self)).patch_nums)


LOSS_NEEDS = (
    Needs("lpips_path", lambda args: args.lpips_weight, "set lpips_weight above 0", "lpips_weight"),
    Needs(
        "gan_start_step gan_learning_rate gan_base_channels",
        lambda args: args.gan_weight,
        "set gan_weight above 0",
        "gan_weight",
    ),
)


@dataclass
class TokenizerLossArguments(CheckedArguments, WithNeeds):
    """Losses of the image tokenizer; a weight of 0 switches its term off."""

    NEEDS = LOSS_NEEDS

    l1_weight: float = arg(0.2, "weight of |x - reconstruction|; sharper edges than l2", at_least(0))
    l2_weight: float = arg(1.0, "weight of the squared error, which is what PSNR measures", at_least(0))
    vq_weight: float = arg(1.0, "weight of the VQ loss that moves codebook and encoder together", at_least(0))
    scale_dropout: float = arg(
        0.0, "share of images decoded without their finer scales, so that coarse codes count", SHARE
    )
    lpips_weight: float = arg(0.0, "weight of the perceptual LPIPS distance; needs lpips_path", at_least(0))
    lpips_path: str | None = arg(None, "file with torch.save(lpips.LPIPS(net='vgg').state_dict(), FILE)")
    gan_weight: float = arg(0.0, "weight of the patch discriminator, on top of VQGAN's adaptive weight", at_least(0))
    gan_start_step: int = arg(
        10_000, "step of max_steps from which the GAN loss counts; L1/L2 only before", at_least(0)
    )
    gan_learning_rate: float = arg(1e-4, "learning rate of the discriminator", at_least(0))
    gan_base_channels: int = arg(32, "width of the discriminator's first layer", at_least(1))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_needs(self, LOSS_NEEDS)


@dataclass
class AveragedTrainingArguments(CheckedArguments):
    """Arguments of an `AveragedRun`; precision and processes are set by `accelerate launch`."""

    output_dir: str = arg("out/averaged", "folder of checkpoints, the log and the trained model")
    max_steps: int = arg(10_000, "optimizer steps; the cosine schedule ends here", at_least(1))
    max_minutes: float | None = arg(
        None, "end within this wall time: fewer steps where all do not fit, with their whole schedule", above(0)
    )
    batch_size: int = arg(64, "images per process and step", at_least(1))
    learning_rate: float = arg(1e-3, "peak learning rate", at_least(0))
    warmup_steps: int = arg(100, "steps of linear warm-up, followed by a cosine", at_least(0))
    weight_decay: float = arg(
        0.0, "AdamW's weight decay of convolutions (never of codebook, norms, biases)", at_least(0)
    )
    max_grad_norm: float = arg(1.0, "gradients are clipped to this norm", above(0))
    ema_decay: float = arg(
        0.998,
        "decay of the averaged weights, which are evaluated and saved; 0 saves the raw ones",
        Bounds(at_least=0, below=1),
    )
    log_steps: int = arg(50, "steps between log lines (the only steps that synchronize the device)", at_least(1))
    eval_steps: int = arg(500, "steps between evaluations", at_least(1))
    save_steps: int = arg(1000, "steps between resumable checkpoints", at_least(1))
    resume: bool = arg(False, "continue from the newest checkpoint in output_dir, or start if there is none")
    report_to: Literal["tensorboard", "wandb", "none"] = arg("tensorboard", "where the log and the grids go as well")
    allow_changed: list[str] = arg([], "settings that may differ from the checkpoint's with --resume; kept on record")
    num_workers: int = arg(0, "data loader processes; useful only if images are made on the fly", at_least(0))
    seed: int = arg(0, "seed of weights, data and order", SEED)


@dataclass
class TokenizerTrainingArguments(AveragedTrainingArguments, WithNeeds):
    """Arguments of recipes/train_vq.py; precision and processes are set by `accelerate launch`."""

    NEEDS = (
        Needs(
            "revive_until",
            lambda args: args.revive_after_steps,
            "set revive_after_steps above 0",
            "revive_after_steps",
        ),
    )

    data_dir: str = arg("data/scenes", "folder of image files, or of *.parquet with `images` or `image`")
    fit: Fit = arg("crop", "images that are not square: crop to the centre, pad with white, or refuse")
    max_bad: int = arg(0, "images that cannot be read the run may leave out; all are checked before it", at_least(0))
    output_dir: str = arg("out/vq", "folder of checkpoints, logs, image grids and the trained tokenizer")
    final_learning_rate: float = arg(1e-5, "learning rate at max_steps, the end of the cosine", at_least(0))
    revive_after_steps: int = arg(
        100, "a code that no scale used for this many steps is reset to a feature; 0: never", at_least(0)
    )
    revive_until: float = arg(0.7, "share of max_steps after which no code is reset", SHARE)
    eval_steps: int = arg(500, "steps between evaluations on held-out images", at_least(1))
    eval_images: int = arg(256, "images held out of training", at_least(1))
    grid_steps: int = arg(1000, "steps between image grids, originals above reconstructions", at_least(1))
    save_total_limit: int = arg(1, "checkpoints kept; older ones are deleted", at_least(1))
    cache_gb: float = arg(
        2.0, "cache all decoded images if they fit into this much memory, else decode on the fly", at_least(0)
    )
    num_workers: int = arg(0, "data loader processes; useful only if images are decoded on the fly", at_least(0))
    seed: int = arg(0, "seed of weights, held-out split, order and code revival", SEED)
