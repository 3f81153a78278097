"""lm-eval of checkpoints and of adapters, which its model `hf` cannot attach: it resizes the vocabulary before.

    python -m unified.evaluation.lm_eval_plugin --model unified --model_args pretrained=weights/scenes-smollm2 \\
        --include_path eval/lm_eval_tasks --tasks unified_answers,unified_facts --output_path results/lm_eval

That is the command `lm_eval`, which has no plug-ins, with one more model; all its options are there. A checkpoint, or
one that `unified merge` has made of an adapter, needs lm-eval's own `--model hf`, with `trust_remote_code=True`.
Answers are text: no task of lm-eval asks for a picture.
"""

import os
from typing import Any

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from unified.checkpoints.loading import load
from unified.models.messages import with_system_prompt

# arguments of `HFLM` that count for a model that is loaded already
HONOURED = (
    "add_bos_token batch_size chat_template_args enable_thinking logits_cache max_batch_size max_length "
    "mixed_precision_dtype prefix_token_id softmax_dtype think_end_token truncation trust_remote_code"
).split()


@register_model("unified")
class UnifiedLM(HFLM):
    """A checkpoint or adapter, loaded as `unified.load` does.

    Args:
        pretrained: folder or hub name. base: of an adapter's base, where it is not found.
        device, dtype: the best device there is and the stored dtype by default.
        kwargs: those of lm-eval's `HFLM` in `HONOURED`.
    """

    def __init__(
        self,
        pretrained: str,
        base: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        **kwargs: Any,
    ) -> None:
        unknown = sorted(kwargs.keys() - set(HONOURED))
        if unknown:
            raise ValueError(
                f"model_args {', '.join(unknown)}: nothing honours it; valid are pretrained, base, device, dtype, "
                f"{', '.join(HONOURED)}"
            )
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                f"{os.environ['WORLD_SIZE']} processes would each score everything; start one, or `unified merge` and "
                "give --model hf the result"
            )
        model, processor = load(pretrained, device, None if dtype == "auto" else dtype, base)
        super().__init__(pretrained=model, tokenizer=processor.tokenizer, **kwargs)
        self.system_prompt = processor.system_prompt

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """As lm-eval's, behind the system prompt of training and chat, where the task or a flag gives no other."""
        history = [dict(message) for message in with_system_prompt(chat_history, self.system_prompt)]
        return str(super().apply_chat_template(history, add_generation_prompt))

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **kwargs: Any) -> Tensor:
        """As lm-eval's, of text alone."""
        return super()._model_generate(context, max_length, stop, generation_mode="text", **kwargs)


if __name__ == "__main__":
    cli_evaluate()
