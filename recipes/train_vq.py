"""Train the image tokenizer (VQModel) on a folder of images.

    accelerate launch --config_file recipes/accelerate_configs/cpu.yaml recipes/train_vq.py \\
        --config recipes/configs/smollm2_scenes/0_vq.yaml
    accelerate launch --num_processes 8 --mixed_precision bf16 recipes/train_vq.py \\
        --config recipes/configs/smollm2_scenes/0_vq.yaml --data_dir /data/images --output_dir out/vq
    ... --resume          # after an interruption: same command, same trajectory

Every YAML key is a flag (`--help` lists them). Images: *.parquet with an `images` column, or png/jpg files.
Writes to output_dir: `log.jsonl` and TensorBoard files, `grids/*.png` (originals over reconstructions),
`checkpoint-*/` (resumable), and at the end the averaged weights as `config.json` + `model.safetensors`, ready for
`VQModel.from_pretrained`. Exit status 2 and one line on stderr when the input is wrong.
"""

import copy
import json
import math
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from unified.arguments import TokenizerArguments, TokenizerLossArguments, TokenizerTrainingArguments, parse, run_main
from unified.configuration import VQConfig
from unified.metrics import psnr
from unified.pictures import to_pixel_values, to_uint8
from unified.vq_data import PixelDataset, StepSampler, held_out_split, open_images, stack
from unified.vq_losses import (
    LPIPS,
    CodeUsage,
    PatchDiscriminator,
    adaptive_weight,
    drop_scales,
    hinge_d_loss,
    residuals,
    revive_dead_codes,
)
from unified.vq_model import VQModel


def main() -> None:
    """Read arguments, load images, build or resume the run, train, save."""
    model_args, loss_args, args = parse((TokenizerArguments, TokenizerLossArguments, TokenizerTrainingArguments))
    config = VQConfig(**asdict(model_args))
    lpips = LPIPS.load(loss_args.lpips_path) if loss_args.lpips_weight > 0 else None
    checkpoint = newest_checkpoint(args)
    accelerator = Accelerator(log_with="tensorboard", project_dir=args.output_dir)
    set_seed(args.seed)
    dataset = PixelDataset(open_images(args.data_dir), config.image_size, args.cache_gb)
    train_rows, held_out_rows = held_out_split(len(dataset), args.eval_images, args.seed)
    run = TokenizerRun(accelerator, VQModel(config), lpips, loss_args, args)
    accelerator.init_trackers("tensorboard", config=flat(asdict(model_args) | asdict(loss_args) | asdict(args)))
    first_step = run.load(checkpoint)
    train(run, make_loader(dataset, train_rows, first_step, run), dataset.__getitems__(held_out_rows.tolist()))
    run.finish()


def train(run: "TokenizerRun", loader: DataLoader, held_out: Tensor) -> None:
    """Step through `loader`; log, evaluate, draw and save on the way. `held_out` is uint8 (B, H, W, 3)."""
    args, steps = run.args, loader.batch_sampler.steps
    started, deadline = time.monotonic(), (args.max_minutes or math.inf) * 60
    bar = tqdm(total=args.max_steps, initial=steps.start, unit="step", disable=not run.accelerator.is_main_process)
    for step, images in zip(steps, loader, strict=True):
        pixel_values = to_pixel_values(images.to(run.accelerator.device, non_blocking=True))
        run.revive(step, pixel_values)
        run.step(step, pixel_values)
        bar.update()
        done = step + 1
        out_of_time = run.agree(time.monotonic() - started > deadline)
        last = done == args.max_steps or out_of_time
        if done % args.log_steps == 0 or last:
            bar.set_postfix(run.log_training(done))
        if done % args.eval_steps == 0 or last:
            run.evaluate(done, held_out)
        if done % args.grid_steps == 0 or last:
            run.draw(done, held_out[:16])
        if done % args.save_steps == 0 or last:
            run.save(done)
        if out_of_time:
            break
    bar.close()


class TokenizerRun:
    """Everything a run carries from step to step: weights, their average, optimizers, code usage, clocks."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: VQModel,
        lpips: LPIPS | None,
        loss_args: TokenizerLossArguments,
        args: TokenizerTrainingArguments,
    ) -> None:
        self.accelerator, self.loss_args, self.args = accelerator, loss_args, args
        self.core = model.to(accelerator.device, memory_format=torch.channels_last).train()
        self.average = copy.deepcopy(self.core).requires_grad_(False).eval()
        self.lpips = lpips and lpips.to(accelerator.device, memory_format=torch.channels_last)
        self.usage = CodeUsage(model.config.codebook_size, model.config.patch_nums).to(accelerator.device)
        optimizer = torch.optim.AdamW(parameter_groups(model, args.weight_decay), betas=(0.9, 0.95), fused=True)
        self.model, self.optimizer = accelerator.prepare(self.core, optimizer)
        accelerator.register_for_checkpointing(self.average, self.usage)
        self.last_layer = [layer for layer in self.core.decoder.modules() if isinstance(layer, nn.Conv2d)][-1].weight
        if loss_args.gan_weight > 0:
            critic = PatchDiscriminator(loss_args.gan_base_channels)
            self.critic_core = critic.to(accelerator.device, memory_format=torch.channels_last)
            critic_optimizer = torch.optim.AdamW(critic.parameters(), loss_args.gan_learning_rate, (0.5, 0.9))
            self.critic, self.critic_optimizer = accelerator.prepare(self.critic_core, critic_optimizer)
        self.sums: dict[str, Tensor] = {}
        self.window_start, self.window_steps = time.monotonic(), 0

    def step(self, step: int, pixel_values: Tensor) -> None:
        """One update of the tokenizer, its average and, where it plays, the discriminator."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.args)
        generator = torch.Generator().manual_seed(
            (self.args.seed << 40) + (step << 12) + self.accelerator.process_index
        )
        scales, share = len(self.core.quantizer.patch_nums), self.loss_args.scale_dropout
        kept = drop_scales(len(pixel_values), scales, share, generator).to(pixel_values.device)
        output = self.model(pixel_values, kept)
        adversarial = self.loss_args.gan_weight > 0 and step >= self.loss_args.gan_start_step
        loss = self.loss(pixel_values, output.reconstruction.float(), output.commitment_loss, adversarial)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.core.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if adversarial:
            self.step_critic(pixel_values, output.reconstruction.detach().float())
        self.usage.update(output.codes)
        self.update_average(step)
        self.window_steps += 1

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
        self.critic_optimizer.step()
        self.critic_optimizer.zero_grad()
        self.add(critic=loss)

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        """Move the averaged weights; early on the average is short, or it would remember the random start."""
        decay = min(self.args.ema_decay, (step + 1) / (step + 10)) if self.args.ema_decay > 0 else 0.0
        torch._foreach_lerp_(list(self.average.parameters()), list(self.core.parameters()), 1 - decay)

    @torch.no_grad()
    def revive(self, step: int, pixel_values: Tensor) -> None:
        """Restart idle codes from what the encoder says now; at step 0 that is the whole codebook."""
        period, until = self.args.revive_after_steps, self.args.revive_until * self.args.max_steps
        if period == 0 or step % period != 0 or step > until:
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

    def add(self, **terms: Tensor) -> None:
        """Sum terms on the device; only `log_training` waits for them."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()

    def log_training(self, done: int) -> dict[str, str]:
        """Write the window's mean losses, code usage and speed; returns what the progress bar shows."""
        seconds = time.monotonic() - self.window_start
        images = self.window_steps * self.args.batch_size * self.accelerator.num_processes
        record = {f"train/{name}": float(value) / self.window_steps for name, value in self.sums.items()}
        for scale, (share, width) in enumerate(zip(self.usage.usage(), self.usage.perplexity(), strict=True)):
            record |= {f"usage/scale_{scale}": float(share), f"perplexity/scale_{scale}": float(width)}
        record |= {"learning_rate": learning_rate(done - 1, self.args), "images_per_second": images / seconds}
        self.write(done, record)
        self.usage.reset()
        self.sums, self.window_steps, self.window_start = {}, 0, time.monotonic()
        return {"loss": f"{record['train/loss']:.4f}", "image/s": f"{record['images_per_second']:.0f}"}

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
        path = Path(self.args.output_dir, "grids", f"{done:07d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grid.contiguous().numpy()).save(path)

    def write(self, done: int, record: dict[str, float]) -> None:
        """One line of log.jsonl and the same values to TensorBoard."""
        self.accelerator.log(record, step=done)
        if self.accelerator.is_main_process:
            with Path(self.args.output_dir, "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps({"step": done} | record) + "\n")

    def agree(self, mine: bool) -> bool:
        """True on every process when it is true on one: they must leave the loop together."""
        if self.accelerator.num_processes == 1 or self.args.max_minutes is None:
            return mine
        return bool(self.accelerator.reduce(torch.tensor([float(mine)], device=self.accelerator.device)).item())

    def save(self, done: int) -> None:
        """Write checkpoint-<step>, complete or not at all, and drop the oldest beyond save_total_limit."""
        folder = Path(self.args.output_dir)
        partial, final = folder / "unfinished-checkpoint", folder / f"checkpoint-{done:07d}"
        self.agree_on_idle()  # only the main process's counters are in a checkpoint
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            for old in sorted(folder.glob("checkpoint-*"))[: -self.args.save_total_limit]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def load(self, checkpoint: Path | None) -> int:
        """Continue from `checkpoint`; returns the first step to do."""
        if checkpoint is None:
            return 0
        self.accelerator.load_state(str(checkpoint))
        self.accelerator.print(f"resumed from {checkpoint}")
        return int(checkpoint.name.split("-")[1])

    def finish(self) -> None:
        """Save the averaged weights for `VQModel.from_pretrained` and close the log."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            partial = Path(self.args.output_dir, "unfinished-model")
            self.average.to(memory_format=torch.contiguous_format).save_pretrained(partial)
            for path in partial.iterdir():
                os.replace(path, partial.parent / path.name)
            partial.rmdir()
        self.accelerator.end_training()


def learning_rate(step: int, args: TokenizerTrainingArguments) -> float:
    """Linear warm-up, then a cosine down to final_learning_rate at max_steps."""
    warm = min(1.0, (step + 1) / max(args.warmup_steps, 1))
    progress = max(0, step - args.warmup_steps) / max(args.max_steps - args.warmup_steps, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return warm * (args.final_learning_rate + (args.learning_rate - args.final_learning_rate) * cosine)


def parameter_groups(model: VQModel, weight_decay: float) -> list[dict[str, Any]]:
    """Convolution weights decay; norms, biases and the codebook do not."""
    kernels = [p for p in model.parameters() if p.ndim == 4]
    others = [p for p in model.parameters() if p.ndim != 4]
    return [{"params": kernels, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def make_loader(dataset: PixelDataset, rows: Tensor, first_step: int, run: TokenizerRun) -> DataLoader:
    """This process's batches from `first_step` on."""
    args, accelerator = run.args, run.accelerator
    steps = range(first_step, args.max_steps)
    sampler = StepSampler(
        rows, args.batch_size, steps, args.seed, accelerator.process_index, accelerator.num_processes
    )
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=stack, num_workers=args.num_workers)


def newest_checkpoint(args: TokenizerTrainingArguments) -> Path | None:
    """Checkpoint to resume from; raises ValueError when a new run would write over an old one's."""
    found = sorted(Path(args.output_dir).glob("checkpoint-*"))
    if found and not args.resume:
        raise ValueError(f"output_dir {args.output_dir} holds {found[-1].name}; add --resume, or give another folder")
    return found[-1] if found else None


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """TensorBoard takes scalars and strings only."""
    return {name: value if isinstance(value, int | float | str) else str(value) for name, value in values.items()}


if __name__ == "__main__":
    run_main(main)
