"""A server of a toy with the page, as a program: `page_server.py FOLDER [KEY ...]`.

It prints `port N`, and for each line of its input, seconds by which pages are older then, how many it keeps. It stops
as its input ends. The toy has three scales and answers `draw` with a picture; its engine's steps take time, as a large
model's do.
"""

import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from toys import make_tokenizer, save_llm

from unified import ImageSampling, VQConfig, VQModel
from unified.checkpoints.extension import extend
from unified.checkpoints.loading import load
from unified.serving.app import AppServer, create_app
from unified.serving.engine import Engine, EngineLimits
from unified.serving.page_about import Card
from unified.serving.settings import ServerSettings

STEP_SECONDS = 0.3
SAMPLING = ImageSampling(temperature=0.9, guidance_scale=2.0)
CARD = "---\nwidget:\n- text: draw\n---\n# A toy\n\n![it](https://example.com/toy.png)\n\nIts card."


@torch.no_grad()
def toy(folder: Path) -> tuple[Any, Any]:
    """A random model of three scales that answers `draw` with a picture."""
    torch.manual_seed(0)
    config = VQConfig(
        architecture="small", image_size=32, channels=(32, 32), patch_nums=(1, 2, 4), codebook_size=32, code_dim=8
    )
    VQModel(config).save_pretrained(folder / "vq")
    extend(save_llm(folder / "llm", make_tokenizer()), folder / "vq", folder / "model")
    model, processor = load(folder / "model", device="cpu")
    chats = [[{"role": "user", "content": words}] for words in ("draw", "hello there")]
    prompts = [torch.tensor([processor.prompt_ids(chat)]) for chat in chats]
    to_draw, to_say = [model.model(ids).last_hidden_state[0, -1] for ids in prompts]
    along = to_say * (to_draw @ to_say) / (to_say @ to_say)
    model.lm_head.weight[processor.boi_token_id] = 50 * (to_draw - along)  # what `draw` has and `hello` has not
    model.lm_head.weight[processor.tokenizer.eos_token_id] = -10 * along
    return model, processor


def main(folder: Path, *keys: str) -> None:
    from unified.serving.page import mount_page

    torch.set_num_threads(1)
    engine = Engine(*toy(folder), EngineLimits(max_queue=0))
    step = engine.scheduler.step

    def slow_step() -> None:
        time.sleep(STEP_SECONDS)
        step()

    engine.scheduler.step = slow_step  # type: ignore[method-assign]
    settings = ServerSettings(
        model_name="a toy",
        api_keys=keys,
        sampling=SAMPLING,
        default_new_tokens=8,
        max_images=4,
        max_body_bytes=100_000,
    )
    app = create_app(engine, settings)
    mount_page(app, Card.parse(CARD))
    server = AppServer(app, port=0, log_level="error")
    threading.Thread(target=stop_with_input, args=[server], daemon=True).start()
    server.run()


def stop_with_input(server: AppServer) -> None:
    say(f"port {server.wait_for_address()[1]}")
    gradio = server.config.app.router.routes[-1].app.app
    for line in sys.stdin:
        used = gradio.state_holder.time_last_used
        used.update({name: at - timedelta(seconds=float(line)) for name, at in used.items()})
        say(str(len(used)))
    server.should_exit = True


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
