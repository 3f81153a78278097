"""One answer as it grows: its context, how far its image is, and what it says.

Legend: L codes of an image.
"""

import numpy as np
import torch
from torch import Tensor

from unified.files.images import pixels_to_image
from unified.inference.text_to_image import codes_to_images
from unified.models.configuration import UnifiedConfig
from unified.models.modeling import UnifiedForCausalLM
from unified.models.row_cache import CachedRow
from unified.serving.jobs import Failed, Finished, PartialImage, TextToken, Ticket, WholeImage, image_seed
from unified.serving.prefixes import Prefix, position_keys
from unified.serving.rows import Row, end_image

DIVERGED = "the model's logits are nan, so nothing can be sampled: its training has diverged"


class Sequence:
    """A job that is being worked on. `row` is its context; `cached` what is in no batch's cache, but kept."""

    def __init__(self, ticket: Ticket, model: UnifiedForCausalLM) -> None:
        self.ticket, self.job, self.model = ticket, ticket.job, model
        self.ids = list(self.job.input_ids)  # of all positions, in the cache or not
        self.text, self.images = 0, 0
        self.text_generator = torch.Generator(model.device).manual_seed(self.job.seed)
        self.alone = False  # failed in a batch, and is tried again by itself
        self.restart()

    @property
    def config(self) -> UnifiedConfig:
        """The model's."""
        return self.model.config

    def restart(self) -> None:
        """Begin again with all that has been said as the prompt; an unfinished image is drawn again."""
        self.cached: CachedRow | None = None
        self.ticket.cached = 0
        self.row = Row(list(self.ids), self.job.input_codes)
        self.reset_image()

    def reset_image(self) -> None:
        """Before an answer's next image."""
        self.codes: list[Tensor] = []
        self.invalid: list[Tensor] = []
        self.seed = image_seed(self.job.seed, self.images)
        self.generator = torch.Generator(self.model.device).manual_seed(self.seed)

    def reuse(self, prefix: Prefix) -> None:
        """Begin with what is cached of the prompt."""
        self.cached, self.ticket.cached = prefix.row, prefix.length
        codes = self.job.input_codes[prefix.images :]
        self.row = Row(self.ids[prefix.length :], codes, prefix.position, prefix.image_seen)

    @property
    def keys(self) -> np.ndarray:
        """What the positions hold that are in the cache; see `position_keys`."""
        return self.prompt_keys()[: len(self.ids) - len(self.row.pending)]

    def prompt_keys(self) -> np.ndarray:
        """What all positions hold."""
        return position_keys(self.ids, self.job.input_codes, self.config)

    @property
    def starts_image(self) -> bool:
        """Whether the next step is an image's first scale."""
        return self.ids[-1] == self.config.boi_token_id

    @property
    def guided(self) -> bool:
        """Whether images need the unconditional pass."""
        return self.job.image_sampling.guidance_scale != 1

    def suppressed(self) -> list[int]:
        """Text ids that cannot come next."""
        boi, eoi, placeholder = self.config.vocabulary.special_ids
        return [eoi, placeholder, *([boi] if self.images >= self.job.max_images else [])]

    def add_token(self, token: int) -> None:
        """The next text token, an end or an image start."""
        self.text += 1
        if token in self.job.end_ids:
            self.finish("stop")
            return
        self.ids.append(token)
        self.row.pending = [token]
        if not self.starts_image:
            self.ticket.say(TextToken(token))
            if self.text >= self.job.max_new_tokens:
                self.finish("length")

    def add_scale(self, codes: Tensor, invalid: Tensor, f_hat: Tensor | None) -> None:
        """One scale's codes (n,) of the image; with f_hat (1, C, h_K, w_K) so far the image is shown."""
        self.codes.append(codes)
        self.invalid.append(invalid)
        if f_hat is not None:
            pixels = self.model.model.vq_model.f_hat_to_pixels(f_hat).clamp(-1, 1)
            self.ticket.say(PartialImage(self.images, len(self.codes) - 1, pixels_to_image(pixels[0])))

    def finish_image(self) -> None:
        """All scales are there."""
        if bool(torch.stack(self.invalid).any()):
            self.ticket.say(Failed("error", DIVERGED))
            return
        codes = torch.cat(self.codes)
        (image,) = codes_to_images(self.model, codes[None])
        self.ticket.say(WholeImage(self.images, self.seed, codes.cpu(), image))
        self.ids += [*self.config.vocabulary.codes_to_ids(codes).tolist(), self.config.eoi_token_id]
        end_image(self.model, self.row)
        self.images += 1
        self.reset_image()
        if self.text >= self.job.max_new_tokens:
            self.finish("image" if self.job.max_new_tokens == 0 else "length")

    def finish(self, reason: str) -> None:
        """The answer is complete."""
        self.ticket.say(Finished(reason))
