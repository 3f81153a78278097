"""Train the image tokenizer (VQModel) on a folder of images.

    accelerate launch --config_file recipes/accelerate_configs/cpu.yaml recipes/train_vq.py \\
        --config recipes/configs/smollm2_scenes/0_vq.yaml
    accelerate launch --num_processes 8 --mixed_precision bf16 recipes/train_vq.py \\
        --config recipes/configs/smollm2_scenes/0_vq.yaml --data_dir /data/images --output_dir out/vq
    ... --resume          # after an interruption: same command, same trajectory

Every YAML key is a flag (`--help` lists them). Images: files of any format Pillow reads, and *.parquet with `images`.
All are checked before the first step: those that cannot be read are named and counted, and refused beyond --max_bad.
Writes to output_dir: `log.jsonl` and TensorBoard files, `grids/*.png` (originals over reconstructions),
`checkpoint-*/` (resumable), and at the end the averaged weights as `config.json` + `model.safetensors`, ready for
`VQModel.from_pretrained`. Exit status 2 and one line on stderr when the input is wrong.
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from unified.arguments.parser import parse, run_main
from unified.evaluation.metrics import psnr
from unified.files.image_sets import say
from unified.files.images import OPENER_VERSION, to_pixel_values, to_uint8, write_image
from unified.hardware.arguments import HardwareArguments
from unified.image_tokenizer.configuration import VQConfig
from unified.image_tokenizer.image_dataset import PixelDataset, StepSampler, open_images, stack
from unified.image_tokenizer.losses import (
    LPIPS,
    CodeUsage,
    PatchDiscriminator,
    adaptive_weight,
    drop_scales,
    hinge_d_loss,
    residuals,
    revive_dead_codes,
)
from unified.image_tokenizer.model import VQModel
from unified.reports.endings import say_end
from unified.training.averaged_training import AveragedRun, newest_checkpoint
from unified.training.engines import recorded
from unified.training.hardware_choice import choose_for_accelerator
from unified.training.run_record import RunRecord
from unified.training.shutdown import shut_down
from unified.training.tokenizer_arguments import TokenizerArguments, TokenizerLossArguments, TokenizerTrainingArguments
from unified.training.trackers import check_trackers, start_tracker, track_image, tracked


def main() -> None:
    """Read arguments, load images, build or resume the run, train, save."""
    hardware, model_args, loss_args, args = parse(
        (HardwareArguments, TokenizerArguments, TokenizerLossArguments, TokenizerTrainingArguments)
    )
    config = VQConfig(**asdict(model_args))
    check(config, loss_args, args)
    lpips = LPIPS.load(loss_args.lpips_path) if loss_args.lpips_weight > 0 else None
    check_trackers(args.report_to)
    checkpoint = newest_checkpoint(args)
    accelerator = choose_for_accelerator(hardware, checkpoint, **tracked(args.report_to, args.output_dir))
    set_seed(args.seed)
    dataset = PixelDataset(open_images(args.data_dir), config.image_size, args.cache_gb, args.fit, args.max_bad)
    train_rows, held_out_rows = dataset.held_out_split(args.eval_images, args.seed)
    held_out = dataset.__getitems__(held_out_rows.tolist())  # uint8 (B, H, W, 3)
    run = TokenizerRun(accelerator, VQModel(config), lpips, loss_args, args, held_out)
    run.rows_of = lambda step: names_of(dataset, train_rows, step, run)
    start_tracker(accelerator, args.report_to, asdict(model_args) | asdict(loss_args) | asdict(args))
    launch = recorded(accelerator) | {"opener": OPENER_VERSION}
    record = RunRecord.of((model_args, loss_args, args), dataset.digest(), "from nothing", launch)
    trained = run.run(record, checkpoint, lambda step: make_loader(dataset, train_rows, step, run))
    main_process = accelerator.is_main_process and trained
    shut_down(accelerator)
    if main_process:
        measure = f"unified run eval/reconstruction.py --vq {args.output_dir} --images {args.data_dir}"
        say_end(
            args.output_dir, run.scores, measure, f"unified extend --llm MY_LLM --vq {args.output_dir} --out out/base"
        )


def check(config: VQConfig, loss_args: TokenizerLossArguments, args: TokenizerTrainingArguments) -> None:
    """Raise ValueError for losses that no step of the run would have."""
    if loss_args.gan_weight and loss_args.gan_start_step >= args.max_steps:
        raise ValueError(
            f"gan_weight {loss_args.gan_weight:g} would have no effect: gan_start_step {loss_args.gan_start_step} is "
            f"not below max_steps {args.max_steps}; lower it, or set gan_weight to 0"
        )
    if loss_args.scale_dropout and len(config.patch_nums) == 1:
        raise ValueError(
            f"scale_dropout {loss_args.scale_dropout:g} would have no effect: patch_nums has one scale; set it to 0"
        )


class TokenizerRun(AveragedRun):
    """The tokenizer's run, with code usage and, where it is on, the discriminator and its optimizer."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: VQModel,
        lpips: LPIPS | None,
        loss_args: TokenizerLossArguments,
        args: TokenizerTrainingArguments,
        held_out: Tensor,
    ) -> None:
        super().__init__(accelerator, model, args, args.final_learning_rate, args.save_total_limit)
        self.loss_args, self.held_out = loss_args, held_out
        self.lpips = lpips and lpips.to(accelerator.device, memory_format=torch.channels_last)
        self.usage = CodeUsage(model.config.codebook_size, model.config.patch_nums).to(accelerator.device)
        self.kept["usage"] = self.usage
        self.last_layer = [layer for layer in self.core.decoder.modules() if isinstance(layer, nn.Conv2d)][-1].weight
        if loss_args.gan_weight > 0:
            critic = PatchDiscriminator(loss_args.gan_base_channels)
            self.critic_core = critic.to(accelerator.device, memory_format=torch.channels_last)
            critic_optimizer = torch.optim.AdamW(critic.parameters(), loss_args.gan_learning_rate, (0.5, 0.9))
            self.critic, self.critic_optimizer = accelerator.prepare(self.critic_core, critic_optimizer)
            self.trained.append((self.critic_core, self.critic_optimizer))

    def renew(self, changed: set[str]) -> None:
        """As for the tokenizer's optimizer, and the discriminator's learning rate, which stays as it is set once."""
        super().renew(changed)
        if "gan_learning_rate" in changed and self.loss_args.gan_weight > 0:
            for group in self.critic_optimizer.param_groups:
                group["lr"] = self.loss_args.gan_learning_rate

    def step(self, step: int, batch: Tensor) -> None:
        """One update of the tokenizer, its average and the discriminator; `batch` is uint8 (B, H, W, 3)."""
        pixel_values = to_pixel_values(batch.to(self.accelerator.device, non_blocking=True))
        self.revive(step, pixel_values)
        self.set_learning_rate(step)
        output = self.model(pixel_values, self.kept_scales(step, len(pixel_values)))
        adversarial = self.is_adversarial(step)
        loss = self.loss(pixel_values, output.reconstruction.float(), output.commitment_loss, adversarial)
        self.update(loss)
        if adversarial:
            self.step_critic(pixel_values, output.reconstruction.detach().float())
        self.usage.update(output.codes)
        self.update_average()

    def is_adversarial(self, step: int) -> bool:
        """Whether a step has the GAN loss; a shortened run has it for the same share of its steps."""
        return self.loss_args.gan_weight > 0 and self.position(step) >= self.loss_args.gan_start_step

    def kept_scales(self, step: int, batch: int) -> Tensor | None:
        """How many scales each image is decoded from, (B,); None: all of them."""
        share = self.loss_args.scale_dropout
        if share == 0:
            return None
        kept = drop_scales(batch, len(self.core.quantizer.patch_nums), share, self.generator(step))
        return kept.to(self.accelerator.device)

    def loss(self, real: Tensor, reconstruction: Tensor, vq_loss: Tensor, adversarial: bool) -> Tensor:
        """Weighted sum of the terms that are switched on; each is also summed up for the log."""
        weights = self.loss_args
        l1, l2 = F.l1_loss(reconstruction, real), F.mse_loss(reconstruction, real)
        pixels = weights.l1_weight * l1 + weights.l2_weight * l2
        self.add(l1=l1, l2=l2, vq=vq_loss)
        if self.lpips is not None:
            perceptual = self.lpips(reconstruction, real).mean()
            pixels = pixels + weights.lpips_weight * perceptual
            self.add(lpips=perceptual)
        total = pixels + weights.vq_weight * vq_loss
        if adversarial:
            self.critic_core.requires_grad_(False)
            gan = -self.critic_core(reconstruction).mean()
            balance = adaptive_weight(pixels, gan, self.last_layer)
            total = total + weights.gan_weight * balance * gan
            self.add(gan=gan, gan_balance=balance)
        self.add(loss=total)
        return total

    def step_critic(self, real: Tensor, fake: Tensor) -> None:
        """One update of the discriminator."""
        self.critic_core.requires_grad_(True)
        real_scores, fake_scores = self.critic(torch.cat([real, fake])).float().chunk(2)
        loss = hinge_d_loss(real_scores, fake_scores)
        self.accelerator.backward(loss)
        self.finite.add(self.current_step, loss)
        self.critic_optimizer.step()
        self.critic_optimizer.zero_grad()
        self.add(critic=loss)

    @torch.no_grad()
    def revive(self, step: int, pixel_values: Tensor) -> None:
        """Restart idle codes from the encoder's current features; at step 0 that is the whole codebook."""
        period, until = self.args.revive_after_steps, self.args.revive_until * self.args.max_steps
        if period == 0 or step % period != 0 or self.position(step) > until:
            return
        features = self.core.features(pixel_values).float()
        known = self.core.quantizer.next_scale_inputs(self.core.quantizer.quantize(features))
        rest = self.accelerator.gather(residuals(features, known, self.core.config.patch_nums))
        self.agree_on_idle()
        dead = self.usage.idle_steps >= (0 if step == 0 else period)
        embedding = self.core.quantizer.embedding.weight
        rows = revive_dead_codes(embedding, dead, rest, torch.Generator().manual_seed(self.args.seed + step))
        self.average.quantizer.embedding.weight[rows] = embedding[rows]
        for moment in self.optimizer.state.get(embedding, {}).values():
            if moment.shape == embedding.shape:
                moment[rows] = 0
        self.usage.idle_steps[rows] = 0
        self.add(revived=torch.tensor(float(len(rows))))

    def agree_on_idle(self) -> None:
        """A code is idle when it is on every process."""
        self.usage.idle_steps.copy_(self.accelerator.gather(self.usage.idle_steps[None]).amin(dim=0))

    def log_training(self, done: int, **more: float) -> dict[str, str]:
        """The run's, with the code usage of every scale."""
        for scale, (share, width) in enumerate(zip(self.usage.usage(), self.usage.perplexity(), strict=True)):
            more |= {f"usage/scale_{scale}": float(share), f"perplexity/scale_{scale}": float(width)}
        self.usage.reset()
        return super().log_training(done, **more)

    def report(self, done: int, last: bool) -> None:
        """Score and draw held-out images where it is due."""
        if done % self.args.eval_steps == 0 or last:
            self.evaluate(done, self.held_out)
        if last and self.accelerator.is_main_process and (warning := self.held_out_usage.warning()):
            say(warning)
        if done % self.args.grid_steps == 0 or last:
            self.draw(done, self.held_out[:16])

    @torch.no_grad()
    def evaluate(self, done: int, held_out: Tensor) -> None:
        """PSNR of the averaged weights on held-out images, decoding the first 1, 2, ... K scales."""
        if not self.accelerator.is_main_process:
            return
        started, scores, codes = time.monotonic(), [], []
        for images in held_out.split(self.args.batch_size):
            real = to_pixel_values(images.to(self.accelerator.device))
            codes.append(self.average.encode(real))
            scores.append(torch.stack([psnr(fake, real) for fake in self.average.decode_by_scale(codes[-1])]))
        by_scale = torch.cat(scores, dim=1).mean(dim=1).tolist()
        usage = CodeUsage(self.average.config.codebook_size, self.average.config.patch_nums)
        usage.update(torch.cat(codes).cpu())
        record = {f"eval/psnr_scale_{scale}": value for scale, value in enumerate(by_scale)}
        record |= {f"eval/usage_scale_{scale}": value for scale, value in enumerate(usage.usage().tolist())}
        self.write(done, record | {"eval/psnr": by_scale[-1]})
        self.scores = {"PSNR in dB": by_scale[-1]}
        self.held_out_usage = usage
        self.window_start += time.monotonic() - started

    @torch.no_grad()
    def draw(self, done: int, held_out: Tensor) -> None:
        """Picture grid: originals over their reconstructions."""
        if not self.accelerator.is_main_process:
            return
        real = to_pixel_values(held_out.to(self.accelerator.device))
        fake = to_uint8(self.average.decode(self.average.encode(real))).cpu()
        columns = min(8, len(held_out))
        whole = len(held_out) // columns * columns
        pairs = torch.stack([held_out[:whole], fake[:whole]])
        grid = rearrange(pairs, "two (row column) h w c -> (row two h) (column w) c", column=columns)
        picture = Image.fromarray(grid.contiguous().numpy())
        write_image(picture, Path(self.args.output_dir, "grids", f"{done:07d}.png"))
        track_image(self.accelerator, "reconstructions", picture, done)

    def save(self, done: int) -> None:
        """The run's; only the main process's counters are in a checkpoint."""
        self.agree_on_idle()
        super().save(done)


def names_of(dataset: PixelDataset, rows: Tensor, step: int, run: TokenizerRun) -> list[str]:
    """The images of a step, over all processes."""
    count = run.accelerator.num_processes
    samplers = [
        StepSampler(rows, run.args.batch_size, range(step, step + 1), run.args.seed, rank, count)
        for rank in range(count)
    ]
    return [dataset.name(index) for sampler in samplers for batch in sampler for index in batch]


def make_loader(dataset: PixelDataset, rows: Tensor, first_step: int, run: TokenizerRun) -> DataLoader:
    """This process's batches from `first_step` on."""
    args, accelerator = run.args, run.accelerator
    steps = range(first_step, args.max_steps)
    sampler = StepSampler(
        rows, args.batch_size, steps, args.seed, accelerator.process_index, accelerator.num_processes
    )
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=stack, num_workers=args.num_workers)


if __name__ == "__main__":
    run_main(main)
