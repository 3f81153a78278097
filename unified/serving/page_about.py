"""The page's last tab: the model's card, what the model is, and what it cannot do. And what cards suggest to ask."""

import re
from dataclasses import dataclass

import yaml

from unified.image_tokenizer.scales import normalize_patch_nums
from unified.serving.service import Service

# pictures of a card would be asked for from elsewhere, or from a folder that is not served
PICTURES = re.compile(r"!\[[^\]]*\]\([^)]*\)|<img\b[^>]*>", re.IGNORECASE)
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
SQUARE = {"crop": "cropped to their centre", "pad": "put on white"}
LIMITS = """## Limits

* Pictures are squares of {side} × {side} pixels, whatever is asked for; those you show are {fit} and
  scaled to it.
* A conversation holds {context} tokens, of which a picture takes {image}. When it is full, begin a new one.
* Answers and descriptions may be wrong, and no filter stands between the model and you. Do not rely on them.
* Nothing of what you type or show is kept here beyond this page, and nothing is sent to another server. Uploaded
  files are deleted within two hours.
"""


@dataclass(frozen=True)
class Card:
    """A model card (README.md of a model's folder): its text without pictures, and what it suggests to ask."""

    text: str = ""
    prompts: tuple[str, ...] = ()

    @classmethod
    def parse(cls, markdown: str) -> "Card":
        """As it is written; `prompts` are the `text` of the Hub's `widget` examples."""
        found = FRONT_MATTER.match(markdown)
        try:
            front = yaml.safe_load(found[1]) if found else None
        except yaml.YAMLError:  # the text is shown all the same
            front = None
        widget = front.get("widget") if isinstance(front, dict) else None
        prompts = [one["text"] for one in widget or [] if isinstance(one, dict) and isinstance(one.get("text"), str)]
        return cls(PICTURES.sub("", markdown[found.end() :] if found else markdown), tuple(prompts))


def about(service: Service, card: Card) -> str:
    """Markdown of the tab."""
    config, text = service.engine.model.config, service.engine.model.config.text_config
    sides = ", ".join(f"{height}×{width}" for height, width in normalize_patch_nums(config.patch_nums))
    facts = (
        f"**{service.settings.model_name}** reads text and pictures, writes text, and draws pictures of "
        f"{config.image_length} codes in {service.scales} scales ({sides}), each in one step of the same language "
        f"model ({text.model_type}, {text.num_hidden_layers} layers)."
    )
    limits = LIMITS.format(
        side=service.engine.processor.image_size,
        fit=SQUARE[service.engine.processor.fit],
        context=text.max_position_embeddings,
        image=config.image_rope_positions,
    )
    return f"{facts}\n\n{limits}\n\n{card.text or 'This model has no card.'}"
