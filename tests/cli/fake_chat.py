"""A chat that needs no model, for tests of what stands around it; as a program, `unified chat` on a terminal."""

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from PIL import Image

from unified.cli.conversation import Conversation, converse
from unified.hardware.console import ImageProtocol


class FakeChat:
    """Repeats the question; draws a red and blue picture for `draw`; writes on and on for `long`."""

    def __init__(self) -> None:
        self.seed = 7
        self.reset()

    def reset(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.pending_images: list[Any] = []

    def show(self, image: Image.Image) -> None:
        self.pending_images.append(image)

    def ask(self, text: str, on_text: Callable[[str], None]) -> list[dict[str, Any]]:
        if text == "long":
            on_text("once upon a time ")
            time.sleep(60)
        if text == "full":
            raise ValueError("the prompt takes 600 positions;\nshorten it")
        if text == "draw":
            picture = Image.new("RGB", (4, 4), (255, 0, 0))
            picture.paste((0, 0, 255), (0, 2, 4, 4))
            parts: list[dict[str, Any]] = [{"type": "image", "image": picture}]
        else:
            on_text(f"you said {text}")
            parts = [{"type": "text", "text": f"you said {text}"}]
        question = [*({"type": "image"} for _ in self.pending_images), {"type": "text", "text": text}]
        answer = [part if part["type"] == "text" else {"type": "image"} for part in parts]
        self.messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        self.pending_images = []
        return parts


def conversation(out_dir: Path, protocol: ImageProtocol = "none", first: str = "") -> Conversation:
    return Conversation(FakeChat(), out_dir, first, protocol, nullcontext)  # type: ignore[arg-type]


if __name__ == "__main__":
    from unified.cli.line_editor import LineEditor

    converse(conversation(Path(sys.argv[1]), "blocks"), LineEditor().read, interactive=True)
