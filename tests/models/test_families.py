"""Every family of causal LMs: extended and true to the contract, or refused by name when a checkpoint is made."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from families import model_types, tiny_config, tiny_llm
from tolerances import assert_sums_agree, terms_of
from torch import Tensor
from toys import make_tokenizer
from trl.trainer.utils import add_fused_lm_head

from unified import UnifiedForCausalLM, VQConfig, VQModel
from unified.checkpoints.backbone_probe import check_backbone
from unified.checkpoints.extension import join
from unified.image_tokenizer.scales import scale_spans
from unified.models.attention import prefer_grouped
from unified.models.image_sampling import ImageSampling

ROOT = Path(__file__).parents[2]
NO_LAYERS, BIAS, HALF = "has layers of type", "an output matrix with a bias", "is an encoder-decoder"
CACHE = "does not go on scale by scale from its cache"
# what is refused, and why; every other family holds
REFUSED = {
    "axk2 deepseek_v32 deepseek_v4 dots3_note_text glm_moe_dsa hy_v4 llama4_text qwen4_exp_text": NO_LAYERS,
    "bert bert-generation big_bird camembert codegen ctrl data2vec-text electra ernie git gptj megatron-bert": BIAS,
    "modernbert-decoder phi rembert roberta roberta-prelayernorm roc_bert xlm-roberta xlm-roberta-xl xmod": BIAS,
    "bart bigbird_pegasus blenderbot blenderbot-small marian mbart musicgen musicgen_melody mvp pegasus": HALF,
    "plbart prophetnet whisper": HALF,
    "falcon_mamba mamba mamba2 recurrent_gemma rwkv xlstm": "no layers with attention",
    "bloom cpmant mpt": "has no max_position_embeddings",
    "openai-gpt reformer roformer trocr xlm xlnet": "takes no",
    "blt": "no single stack of layers",
    "gpt_neo": "does not let the positions of a scale see each other",
    "inkling_text": "scores text in another way",
    "jamba zamba": CACHE,
    "moshi": "sliding_window that its layers do not use",
    "minimax": "uses cache of its own",
}
REASONS = {name: reason for names, reason in REFUSED.items() for name in names.split()}
# one of each kind, in every run
SHORT = (
    "cohere gemma3n_text gemma4_text gpt2 granite granitemoehybrid lfm2 mistral mixtral nemotron_h qwen3_5_text "
    "bart jamba llama4_text mamba mpt phi"
).split()
TEXT = torch.tensor([[5, 9, 30, 7, 7, 12, 41, 3, 25, 18, 33, 8, 50, 6]])  # longer than a window


@dataclass
class Extended:
    """A model, and how the causal LM that it was made of scored `TEXT`."""

    model: UnifiedForCausalLM
    text_scores: Tensor

    @property
    def terms(self) -> int:
        return 4 * terms_of(self.model)

    def story(self, codes: Tensor) -> Tensor:
        """Ids (1, T) of text, an output image of `codes` (L,) and text."""
        config = self.model.config
        image = [config.boi_token_id, *(codes + config.image_token_offset).tolist(), config.eoi_token_id]
        return torch.tensor([[5, 9, 30, *image, 7, 8]])

    def codes(self, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(32, (self.model.config.image_length,), generator=generator)


def extended(model_type: str) -> Extended:
    tokenizer = make_tokenizer()
    check_backbone(tiny_config(model_type, len(tokenizer)))
    backbone = tiny_llm(model_type, len(tokenizer))
    with torch.no_grad():
        scores = backbone(TEXT, use_cache=False).logits
    config = VQConfig(image_size=32, channels=(32, 32), patch_nums=(1, 2, 4), codebook_size=32, code_dim=8)
    model = join(backbone, VQModel(config).eval(), tokenizer)
    prefer_grouped(model, torch.device("cpu"))  # as in training
    return Extended(model, scores)


@torch.no_grad()
def logits_of(model: UnifiedForCausalLM, ids: Tensor, **inputs: Tensor) -> Tensor:
    logits: Tensor = model(ids, **inputs).logits
    return logits


def text_is_scored_as_before(made: Extended) -> None:
    found = logits_of(made.model, TEXT)[..., : made.text_scores.shape[-1]]
    assert_sums_agree(found, made.text_scores, made.terms, msg="text logits")


def greedy_codes_are_those_of_one_pass(made: Extended) -> None:
    model, config = made.model, made.model.config
    prompt = torch.tensor([[5, 9, 30, config.boi_token_id]])
    ids = model.generate(prompt, image_sampling=ImageSampling(top_k=1), max_new_tokens=0)
    image = slice(prompt.shape[1], prompt.shape[1] + config.image_length)
    scores = config.vocabulary.code_rows(logits_of(model, ids)[0].T).T[image.start - 1 : image.stop - 1]
    chosen = config.vocabulary.ids_to_codes(ids[0, image])
    assert not torch.equal(scores[0], scores[1])
    assert_sums_agree(scores.gather(1, chosen[:, None])[:, 0], scores.amax(dim=1), made.terms, msg="greedy codes")


def scales_depend_on_earlier_ones(made: Extended) -> None:
    model, codes = made.model, made.codes()
    before = logits_of(model, made.story(codes))[0]
    for start, stop in scale_spans(model.config.patch_nums)[:-1]:
        other = codes.clone()
        other[start:stop] = (other[start:stop] + 1) % 32
        after, scored = logits_of(model, made.story(other))[0], 3 + stop
        assert_sums_agree(after[:scored], before[:scored], made.terms, msg="earlier scales")
        assert not torch.equal(after[scored : scored + 4], before[scored : scored + 4])


def a_batch_is_its_rows(made: Extended) -> None:
    ids = made.story(made.codes())
    short = torch.tensor([[11, 12, 13, 14, 15]])
    left = ids.shape[1] - short.shape[1]
    batch = torch.cat([ids, torch.nn.functional.pad(short, (left, 0))])
    mask = torch.cat([torch.ones_like(ids), torch.nn.functional.pad(torch.ones_like(short), (left, 0))])
    found = logits_of(made.model, batch, attention_mask=mask)
    assert_sums_agree(found[:1], logits_of(made.model, ids), made.terms, msg="the longest row of a batch")
    assert_sums_agree(found[1:, left:], logits_of(made.model, short), made.terms, msg="a padded row")


def the_loss_is_the_logits(made: Extended) -> None:
    model, ids = made.model, made.story(made.codes())
    labels = torch.where(ids == model.config.eoi_token_id, -100, ids)
    scores = logits_of(model, ids)[0, :-1].float().log_softmax(dim=-1)
    expected = scores.gather(1, ids[0, 1:, None])[:, 0]
    trained = labels[0, 1:] != -100
    loss = model(ids, labels=labels).loss
    assert_sums_agree(loss, -expected[trained].mean(), made.terms, msg="loss")
    loss.backward()
    rows = model.config.vocabulary.code_rows(model.get_output_embeddings().weight.grad)
    assert rows.isfinite().all() and (rows.abs().amax(dim=1) > 0).all(), "gradients of code rows"
    add_fused_lm_head(model)
    with torch.no_grad():
        fused = model(ids, labels=ids, fused_lm_head=True).log_probs
    assert_sums_agree(fused[0], expected, made.terms, msg="TRL's log-probs")


def saved_and_loaded_it_is_the_same(made: Extended) -> None:
    ids = made.story(made.codes())
    before = logits_of(made.model, ids)
    with tempfile.TemporaryDirectory() as folder:
        made.model.save_pretrained(folder)
        loaded = UnifiedForCausalLM.from_pretrained(folder)
    states = loaded.state_dict()
    different = [name for name, value in made.model.state_dict().items() if not torch.equal(value, states[name])]
    assert different == [], "weights of a loaded model"
    assert_sums_agree(logits_of(loaded, ids), before, made.terms, msg="a loaded model")


CHECKS = (
    saved_and_loaded_it_is_the_same,
    text_is_scored_as_before,
    greedy_codes_are_those_of_one_pass,
    scales_depend_on_earlier_ones,
    a_batch_is_its_rows,
    the_loss_is_the_logits,
)


def check(model_type: str) -> None:
    if model_type in REASONS:
        with pytest.raises(ValueError, match=REASONS[model_type]) as caught:
            extended(model_type)
        assert model_type in str(caught.value) and "\n" not in str(caught.value)
        return
    made = extended(model_type)
    for hold in CHECKS:
        hold(made)


@pytest.mark.parametrize("model_type", SHORT)
def test_a_family_of_each_kind_holds_or_is_refused_by_name(model_type: str) -> None:
    check(model_type)


@pytest.mark.families
@pytest.mark.parametrize("model_type", sorted({*model_types()} - {*SHORT}))
def test_every_family_holds_or_is_refused_by_name(model_type: str) -> None:
    check(model_type)


def test_the_manual_lists_them_all() -> None:
    page = (ROOT / "docs/backbones.md").read_text(encoding="utf-8")
    held, refused = (
        set(
            re.findall(
                r"`([\w.-]+)`", "".join(line.split("|")[2] for line in part.splitlines() if line.startswith("| "))
            )
        )
        for part in page.split("## What holds")[1].split("## Hybrids")[0].split("## What is refused")
    )
    assert held - {"model_type"} == {*model_types()} - {*REASONS} and refused - {"model_type"} == {*REASONS}
    assert f"{len(model_types())} kinds" in page and f"{len(REASONS)} are refused" in page


def test_what_is_refused_is_a_family() -> None:
    assert {*REASONS, *SHORT} <= {*model_types()}
