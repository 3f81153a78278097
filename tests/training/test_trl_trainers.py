"""TRL's SFT, KTO, GRPO and RLOO trainers, stock, on rows with pictures in and out: two steps, and whose loss it is."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from pairs import IMAGE, codes, toy_pairs, turn
from peft import LoraConfig
from PIL import Image
from tolerances import assert_sums_agree, terms_of
from torch import Tensor
from trl import (
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)

from unified import UnifiedForCausalLM, UnifiedProcessor
from unified.data.chat_collator import ChatCollator
from unified.data.preference_collator import UnpairedPreferenceCollator
from unified.data.preferences import PAIR_FEATURES, for_trl, unpaired
from unified.training.rollouts import Rollout

ROWS = [
    {"messages": [turn("user", "Draw a cat."), turn("assistant", "Here:", IMAGE)], "codes": [codes(1)]},
    {"messages": [turn("user", IMAGE, "What is it?"), turn("assistant", "A dog.")], "codes": [codes(2)]},
    {"messages": [turn("user", IMAGE, "Turn it."), turn("assistant", IMAGE)], "codes": [codes(3), codes(4)]},
    {"messages": [turn("user", "Hello!"), turn("assistant", "Good morning to you.")], "codes": []},
]
ASKED = ["What is this?", "Draw another one of these, please."]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")  # a rollout_func is
    rest = {"output_dir": str(tmp_path), "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    speed = {"learning_rate": 2e-3, "lr_scheduler_type": "constant", "max_steps": 2, "logging_steps": 1}
    return {**rest, **speed, "per_device_train_batch_size": 4, "use_cpu": True, "bf16": False}


def losses(trainer: Any, stock: type) -> list[float]:
    """Of the steps of a trainer that is TRL's own; every weight that may learn and is used has changed."""
    assert type(trainer) is stock
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert any("q_proj" in name for name in changed) and not any("vq_model" in name for name in changed)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def scored(model: UnifiedForCausalLM, ids: Tensor, counts: Tensor, **inputs: Any) -> Tensor:
    """Log-probs (B, T - 1) of `ids` by the logits, 0 where `counts` is."""
    with torch.no_grad():
        log_probs = model(input_ids=ids, **inputs).logits[:, :-1].log_softmax(dim=-1)
    return log_probs.gather(2, ids[:, 1:, None]).squeeze(2) * counts[:, 1:]


# --- SFT


def sft_trainer(model: Any, processor: UnifiedProcessor, settings: dict[str, Any], **more: Any) -> SFTTrainer:
    return SFTTrainer(
        model,
        args=SFTConfig(**settings, remove_unused_columns=False),
        train_dataset=for_trl(Dataset.from_list(ROWS)),
        data_collator=ChatCollator(processor, max_length=128),
        processing_class=processor,
        **more,
    )


def test_sft_has_our_loss(model: UnifiedForCausalLM, processor: UnifiedProcessor, settings: dict[str, Any]) -> None:
    batch = ChatCollator(processor, 128)(ROWS)
    assert int((batch["labels"] >= model.config.image_token_offset).sum()) == 2 * 5 and len(batch["image_codes"]) == 2
    with torch.no_grad():
        expected = float(model(**batch).loss)
    found = losses(sft_trainer(model, processor, settings), SFTTrainer)
    assert found[0] == pytest.approx(expected, abs=1e-4) and found[1] < found[0]


def test_sft_of_an_adapter(model: UnifiedForCausalLM, processor: UnifiedProcessor, settings: dict[str, Any]) -> None:
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    found = losses(sft_trainer(model, processor, settings, peft_config=lora), SFTTrainer)
    assert found[1] < found[0]


def test_sft_as_trl_reads_pictures(
    model: UnifiedForCausalLM, processor: UnifiedProcessor, settings: dict[str, Any]
) -> None:
    """Pictures that are read need no collator of ours; one that is drawn needs codes, and says so."""
    asked = [[{"role": "user", "content": question}] for question in ASKED]
    said = [{"role": "assistant", "content": "a red cat"}]
    shown = [{"messages": [*one, *said], "images": [Image.new("RGB", (20, 20), "red")]} for one in asked]
    trainer = SFTTrainer(
        model, args=SFTConfig(**settings), train_dataset=Dataset.from_list(shown), processing_class=processor
    )
    found = losses(trainer, SFTTrainer)
    assert found[1] < found[0]
    drawn = [{"messages": [turn("user", "Draw."), turn("assistant", IMAGE)], "images": shown[0]["images"]}]
    with pytest.raises(ValueError, match="output image, which is written in codes"):
        trainer.data_collator(drawn)


# --- KTO


def test_kto_has_the_loss_of_the_logits(
    model: UnifiedForCausalLM, processor: UnifiedProcessor, settings: dict[str, Any]
) -> None:
    rows = unpaired(Dataset.from_list(toy_pairs("iu"), features=PAIR_FEATURES))
    assert rows["label"] == [True, False] * 2
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in reference.model.language_model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    collator = UnpairedPreferenceCollator(processor, max_length=128)
    trainer = KTOTrainer(
        model,
        ref_model=reference,
        args=KTOConfig(**settings, remove_unused_columns=False, beta=0.5),
        train_dataset=for_trl(rows),
        data_collator=collator,
        processing_class=processor,
    )
    batch = collator(list(rows))
    assert (batch["input_ids"] >= model.config.image_token_offset).any() and len(batch["image_codes"]) == 2
    expected = kto_loss(model, reference, batch, beta=0.5)
    found = losses(trainer, KTOTrainer)
    assert found[0] == pytest.approx(expected, abs=1e-4) and abs(expected - 0.5) > 1e-3 and found[1] < found[0]


def kto_loss(model: UnifiedForCausalLM, reference: UnifiedForCausalLM, batch: dict[str, Tensor], beta: float) -> float:
    """Equations 7 and 8 of the KTO paper (https://huggingface.co/papers/2402.01306), weights 1."""

    def gain(prefix: str) -> Tensor:
        inputs = (batch[f"{prefix}input_ids"], batch[f"{prefix}completion_mask"])
        more = {"attention_mask": batch[f"{prefix}attention_mask"], "image_codes": batch["image_codes"]}
        return (scored(model, *inputs, **more) - scored(reference, *inputs, **more)).sum(dim=1)

    sign = torch.where(batch["label"], 1.0, -1.0)
    kl = gain("KL_").mean().clamp(min=0)
    return float((1 - torch.sigmoid(beta * sign * (gain("") - kl))).mean())


def test_kl_rows_are_the_prompts_with_each_others_answers(processor: UnifiedProcessor) -> None:
    rows = list(unpaired(Dataset.from_list(toy_pairs("iu"), features=PAIR_FEATURES)))
    batch = UnpairedPreferenceCollator(processor, 128)(rows)
    for number, row in enumerate(rows):
        other = rows[number - 1]
        chat = [*row["messages"], *other["completion"]]
        expected = processor.encode_chat(chat, [*row["codes"], *other["completion_codes"]]).input_ids
        kept = batch["KL_attention_mask"][number].bool()
        found = batch["KL_input_ids"][number][kept].tolist()
        assert found == expected[: len(found)] and len(expected) - len(found) <= 1  # what follows the turn's end
    assert "KL_input_ids" not in UnpairedPreferenceCollator(processor, 128, calculate_kl=False)(rows)


@pytest.mark.parametrize("collator", [ChatCollator, UnpairedPreferenceCollator])
def test_columns_that_trl_drops_and_long_rows_are_named(processor: UnifiedProcessor, collator: Any) -> None:
    with pytest.raises(ValueError, match="the rows have no codes.* remove_unused_columns=False"):
        collator(processor, 128)([{"messages": ROWS[0]["messages"], "images": []}])
    rows = ROWS if collator is ChatCollator else list(unpaired(Dataset.from_list(toy_pairs("i"))))
    with pytest.raises(ValueError, match="max_length 9; raise it"):
        collator(processor, 9)(rows)


# --- GRPO and RLOO


def share_of_low_codes(completion_ids: list[list[int]], **others: Any) -> list[float]:
    """384 is the toy's first image id; of its 32 codes half are low."""
    images = [[token - 384 for token in ids if token >= 384] for ids in completion_ids]
    return [sum(code < 16 for code in image) / max(len(image), 1) for image in images]


def online(
    kind: type, model: Any, processor: UnifiedProcessor, settings: dict[str, Any], pictures: bool = True, **more: Any
) -> Any:
    configuration = {GRPOTrainer: GRPOConfig, RLOOTrainer: RLOOConfig}[kind]
    rows = [{"prompt": [{"role": "user", "content": question}]} for question in ASKED]
    rows = [{**row, "images": [Image.new("RGB", (16, 16), "red")] * number} for number, row in enumerate(rows)]
    rows = rows if pictures else [{"prompt": row["prompt"]} for row in rows]
    given = {"reward_funcs": share_of_low_codes, **more.pop("trainer", {})}
    return kind(
        model,
        args=configuration(**{**settings, "num_generations": 4, "max_completion_length": 6, **more}),
        train_dataset=Dataset.from_list(rows),
        processing_class=processor,
        **given,
    )


@pytest.mark.parametrize("kind", [GRPOTrainer, RLOOTrainer])
@pytest.mark.parametrize("mode", ["image", "text"])
def test_as_trl_samples(
    kind: type, mode: str, model: UnifiedForCausalLM, processor: UnifiedProcessor, settings: dict[str, Any]
) -> None:
    """Their own rollouts, of rows with a picture and without; `generation_kwargs` says what is generated."""
    seen: list[dict[str, Any]] = []

    def reward(**given: Any) -> list[float]:
        seen.append(given)
        return [float(number) for number in range(len(given["completion_ids"]))]

    modes = {"generation_kwargs": {"generation_mode": mode}, "trainer": {"reward_funcs": reward}}
    trainer = online(kind, model, processor, settings, **modes)
    assert len(losses(trainer, kind)) == 2 and len(seen) == 2
    for ids in (ids for given in seen for ids in given["completion_ids"]):
        images = [part for part in processor.decode_parts(ids) if part["type"] == "image"]
        assert len(images) == (mode == "image") and len(ids) == (7 if images else len(ids))


@pytest.mark.parametrize("pictures", [True, False])
def test_a_rollout_draws_and_its_log_probs_are_the_logits(
    pictures: bool, model: UnifiedForCausalLM, processor: UnifiedProcessor, settings: dict[str, Any]
) -> None:
    rollout = Rollout("image")
    trainer = online(GRPOTrainer, model, processor, settings, pictures=pictures, trainer={"rollout_func": rollout})
    image = (
        {"type": "image", "image": Image.new("RGB", (16, 16), "red")} if pictures else {"type": "text", "text": "a"}
    )
    chats = [[{"role": "user", "content": [image, {"type": "text", "text": question}]}] for question in ASKED]
    found = rollout(chats, trainer)
    inputs = processor.apply_chat_template(chats, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert found["prompt_ids"] == inputs.pop("input_ids") and not model.training
    for ids, mask, parts in zip(found["completion_ids"], found["env_mask"], found["parts"], strict=True):
        assert ids[0] == processor.boi_token_id and ids[-2:] == [processor.eoi_token_id, processor.end_token_id]
        assert mask == [0, 1, 1, 1, 1, 1, 0, 0] and len(ids) == 8
        assert parts[0]["image"].size == (16, 16) and parts[0]["codes"].tolist() == [i - 384 for i in ids[1:6]]
    width = max(map(len, found["prompt_ids"]))
    both = zip(found["prompt_ids"], found["completion_ids"], strict=True)
    ids = torch.tensor([[processor.pad_token_id] * (width - len(asked)) + asked + said for asked, said in both])
    mask = torch.tensor([[0] * (width - len(asked)) + [1] * (len(asked) + 8) for asked in found["prompt_ids"]])
    pixels = {"pixel_values": inputs["pixel_values"]} if pictures else {}
    more = {**pixels, "num_images": [1, 1]} if pictures else {}
    with torch.no_grad():
        fused, _, _ = trainer._get_per_token_logps_and_entropies(model, ids, mask, 8, **more)
    expected = scored(model, ids, torch.ones_like(ids), attention_mask=mask, **pixels)[:, -8:]
    assert_sums_agree(fused, expected, terms_of(model))


def test_rewards_of_pictures_are_learnt(
    model: UnifiedForCausalLM, processor: UnifiedProcessor, settings: dict[str, Any]
) -> None:
    settings |= {"max_steps": 16, "learning_rate": 5e-3, "per_device_train_batch_size": 16}
    trainer = online(
        GRPOTrainer, model, processor, settings, num_generations=8, trainer={"rollout_func": Rollout("image")}
    )
    losses(trainer, GRPOTrainer)
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.1, rewards


def test_a_rollout_of_text_and_pictures_in_any_order(
    model: UnifiedForCausalLM, processor: UnifiedProcessor, settings: dict[str, Any]
) -> None:
    with torch.no_grad():  # a model that draws now and then
        ids = torch.tensor([processor.prompt_ids([turn("user", ASKED[0])])])
        model.lm_head.weight[processor.boi_token_id] = model.model(ids).last_hidden_state[0, -1] / 8
    rollout = Rollout(max_images=2)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    more: dict[str, Any] = {"trainer": {"rollout_func": rollout, "peft_config": lora}, "max_completion_length": 90}
    trainer = online(GRPOTrainer, model, processor, settings, **more)
    torch.manual_seed(0)
    found = rollout([[turn("user", question)] for question in ASKED * 4], trainer)
    drawn = 0
    for ids, mask, parts in zip(found["completion_ids"], found["env_mask"], found["parts"], strict=True):
        assert ids[-1] != processor.pad_token_id and len(mask) == len(ids)
        assert [token == processor.eoi_token_id for token in ids] == [not chosen for chosen in mask]
        drawn += sum(part["type"] == "image" for part in parts)
        assert sum(token >= 384 for token in ids) == 5 * sum(part["type"] == "image" for part in parts)
    assert drawn and len({*map(len, found["completion_ids"])}) > 1
    assert len(losses(trainer, GRPOTrainer)) == 2


def test_what_a_rollout_cannot_honour_is_refused(
    model: UnifiedForCausalLM, processor: UnifiedProcessor, settings: dict[str, Any]
) -> None:
    rollout = Rollout()
    trainer = online(GRPOTrainer, model, processor, settings, trainer={"rollout_func": rollout})
    with pytest.raises(ValueError, match="prompts are strings; give conversations"):
        rollout(["Draw."], trainer)
    trainer.use_vllm = True
    with pytest.raises(ValueError, match="use_vllm True answers without images"):
        rollout([[turn("user", "Draw.")]], trainer)
    trainer.processing_class = processor.tokenizer
    with pytest.raises(ValueError, match="give it the UnifiedProcessor"):
        rollout([[turn("user", "Draw.")]], trainer)


def test_hfs_name_of_the_placeholder(model: UnifiedForCausalLM, tmp_path: Path) -> None:
    model.config.save_pretrained(tmp_path)
    for config in (model.config, type(model.config).from_pretrained(tmp_path)):
        assert config.image_token_id == config.image_pad_token_id == 322
    assert '"image_token_id"' not in (tmp_path / "config.json").read_text()
