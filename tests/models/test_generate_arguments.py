"""HF's arguments of `generate`: each is honoured around images, or refused by its name in one line."""

import warnings
from typing import Any

import pytest
import torch
from test_generation_text import COUNTING, follows
from toy_models import BOI, EOI, EOS, OFFSET, input_image, random_codes, toy_model
from transformers import DynamicCache, GenerationConfig, LlamaForCausalLM, StaticCache

from unified import UnifiedForCausalLM
from unified.models.image_sampling import ImageSampling

PROMPT = torch.tensor([[5, 6, 7]])
CODES = 21
GREEDY = {"do_sample": False, "image_sampling": ImageSampling(temperature=0)}
ANSWER = {7: 8, 8: BOI, EOI: 20, 20: 21, 21: 22, 22: EOS}  # a word, an image, three words, the end


def answer(model: UnifiedForCausalLM, **settings: Any) -> list[int]:
    """Ids behind the prompt of the answer that `ANSWER` forces."""
    settings = {"max_new_tokens": 12, "logits_processor": follows(ANSWER), **GREEDY, **settings}
    return model.generate(PROMPT, **settings)[0, PROMPT.shape[1] :].tolist()


def words(row: list[int]) -> list[int]:
    return [token for token in row if token < OFFSET]


# --- lengths and precedence


def length(model: UnifiedForCausalLM, **settings: Any) -> int:
    endless = {"suppress_tokens": [EOS], "max_images": 0, "do_sample": False}
    return model.generate(PROMPT, **endless, **settings).shape[1] - PROMPT.shape[1]


@pytest.mark.parametrize("most", [4, 300])
def test_every_way_to_limit_an_answer(most: int) -> None:
    model = toy_model()
    assert length(model, max_new_tokens=most) == most
    assert length(model, max_length=3 + most) == most
    given = {"eos_token_id": EOS, "pad_token_id": 0}
    assert length(model, generation_config=GenerationConfig(max_new_tokens=most, **given)) == most
    assert length(model, generation_config=GenerationConfig(max_length=3 + most, **given)) == most
    model.generation_config.max_length = 3 + most
    assert length(model) == most
    model.generation_config.max_length, model.generation_config.max_new_tokens = None, most
    assert length(model) == most
    assert length(model, max_new_tokens=2) == 2


def test_without_any_limit_an_answer_has_256_tokens() -> None:
    assert length(toy_model()) == 256


def test_lengths_count_text_alone() -> None:
    """An image comes on top, whole; what is written after it counts on from what was written before."""
    model = toy_model()
    counted = [(1, [8]), (2, [8, BOI, EOI]), (3, [8, BOI, EOI, 20]), (12, [8, BOI, EOI, 20, 21, 22, EOS])]
    for most, expected in counted:
        for limit in ({"max_new_tokens": most}, {"max_length": 3 + most, "max_new_tokens": None}):
            row = answer(model, **limit)
            assert words(row) == expected and len(row) == len(expected) + CODES * (most > 1)
    longer = answer(model, min_new_tokens=8, logits_processor=follows({k: v for k, v in ANSWER.items() if v != EOS}))
    assert len(words(longer)) - 1 >= 8  # without the image's end
    begins = {"logits_processor": None, "sequence_bias": [[[7, 8], 1e3], [[8, BOI], 1e3]]}
    forced = answer(model, forced_eos_token_id=EOS, max_new_tokens=5, **begins)
    assert len(words(forced)) == 6 and forced[-1] == EOS


def test_ends_of_arguments_and_configurations() -> None:
    model = toy_model()
    assert words(answer(model, eos_token_id=[EOS, 21]))[-1] == 21
    assert words(answer(model, eos_token_id=torch.tensor(21)))[-1] == 21
    given = GenerationConfig(eos_token_id=21, pad_token_id=0, max_new_tokens=12, do_sample=False)
    assert words(answer(model, generation_config=given, max_new_tokens=12))[-1] == 21
    model.generation_config.eos_token_id = 20
    assert words(answer(model))[-1] == 20


def test_repetition_is_that_of_text() -> None:
    """An image's start and codes are no words that were said before; a caller's own processor sees all columns."""
    model, seen = toy_model(), []

    class Watches(type(follows({})[0])):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            seen.append(input_ids.shape[1])
            return super().__call__(input_ids, scores)

    expected = answer(model)
    for settings in ({"no_repeat_ngram_size": 1}, {"repetition_penalty": 1.5}):
        assert answer(model, **settings, logits_processor=[Watches(ANSWER)]) == expected
    assert seen[:3] == [3, 4, 5 + CODES + 1]


# --- forms of inputs and outputs


def test_prompts_under_every_name() -> None:
    model, expected = toy_model(), answer(toy_model())
    settings = {"max_new_tokens": 12, "logits_processor": follows(ANSWER), **GREEDY}
    for given in ({"inputs": PROMPT}, {"input_ids": PROMPT}, {"input_ids": PROMPT, "attention_mask": PROMPT * 0 + 1}):
        assert model.generate(**given, **settings)[0, 3:].tolist() == expected
    with pytest.raises(ValueError, match="second argument is a GenerationConfig; pass attention_mask by its name"):
        model.generate(PROMPT, torch.ones_like(PROMPT))


@pytest.mark.parametrize("mode", ["sample", "assisted"])
def test_outputs_have_an_entry_for_every_token_of_text(mode: str) -> None:
    model, expected = toy_model(), answer(toy_model())
    settings: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    if mode == "assisted":
        settings["prompt_lookup_num_tokens"] = 2
    else:
        settings |= {"output_hidden_states": True, "output_attentions": True}
        model.set_attn_implementation("eager")
    settings |= {"max_new_tokens": 12, "logits_processor": follows(ANSWER), **GREEDY}
    found = model.generate(PROMPT, **settings)
    assert found.sequences[0, 3:].tolist() == expected
    assert found.past_key_values.get_seq_length() == found.sequences.shape[1] - 1
    text = [token for token in words(expected) if token != EOI]
    for name in ("scores", "logits") + (("hidden_states", "attentions") if mode == "sample" else ()):
        assert len(found[name]) == len(text), name
    assert [step.argmax().item() for step in found.scores] == text
    whole = model(found.sequences).logits[0]
    places = [place for place, token in enumerate(expected, start=3) if token < OFFSET and token != EOI]
    for place, step in zip(places, found.logits, strict=True):
        torch.testing.assert_close(step[0, :OFFSET], whole[place - 1, :OFFSET], rtol=1e-4, atol=1e-3)


def test_scores_of_sampled_text_are_those_that_were_sampled_from() -> None:
    model = toy_model()
    settings = {"return_dict_in_generate": True, "output_scores": True, "max_images": 0, "max_new_tokens": 3}
    found = model.generate(PROMPT, do_sample=True, top_k=5, seed=1, **settings)
    assert [int((step > float("-inf")).sum()) for step in found.scores] == [5] * len(found.scores)
    transitions = model.compute_transition_scores(found.sequences, found.scores, normalize_logits=True)
    assert ((transitions < 0) & (transitions > -20)).all()


def test_several_sequences_of_a_prompt_with_input_images() -> None:
    """Images are repeated with their row."""
    model, codes = toy_model(), random_codes(toy_model(), 3)
    with torch.no_grad():
        model.model.image_embedding.image_in.weight.mul_(5)
    one, two = [*input_image(model), 5, 6], [*input_image(model), *input_image(model)]
    ids = torch.tensor([[0] * (len(two) - len(one)) + one, two])
    settings = {"attention_mask": (ids != 0).long(), "max_new_tokens": 6, "max_images": 0, "do_sample": False}
    once = model.generate(ids, image_codes=codes, **settings)
    assert not torch.equal(model.generate(ids, image_codes=codes.flip(0), **settings), once)
    twice = model.generate(ids, image_codes=codes, **settings, num_return_sequences=1, num_beams=1)
    assert torch.equal(twice, once)
    sampled = {**settings, "do_sample": True, "top_k": 1}  # which is greedy
    assert torch.equal(
        model.generate(ids, image_codes=codes, num_return_sequences=2, **sampled), once.repeat_interleave(2, dim=0)
    )


def test_rows_that_draw_at_different_times_are_padded_on_the_right() -> None:
    model = toy_model()
    follow = COUNTING | {9: BOI, 31: 32, 32: BOI, EOI: 50, 50: 51, 51: EOS, 41: 42, 42: EOS}
    prompts = torch.tensor([[0, 5, BOI], [0, 7, 8], [29, 30, 31], [0, 0, 41]])
    ids = model.generate(
        prompts, attention_mask=(prompts != 0).long(), logits_processor=follows(follow), max_new_tokens=9, **GREEDY
    )
    assert torch.equal(ids[:, :3], prompts)
    rows = [row[3:] for row in ids.tolist()]
    said = [[token for token in row if token < OFFSET] for row in rows]
    assert said[0][:4] == [EOI, 50, 51, EOS] and said[1][:6] == [9, BOI, EOI, 50, 51, EOS]
    assert said[2][:6] == [32, BOI, EOI, 50, 51, EOS] and said[3][:2] == [42, EOS]
    for row in rows:
        end = row.index(EOS)
        assert set(row[end + 1 :]) <= {0} and 0 not in row[:end]
    assert max(row.index(EOS) for row in rows) == len(rows[0]) - 1  # no column of padding alone


# --- caches


@pytest.mark.parametrize(
    "settings",
    [{"use_cache": False}, {"cache_implementation": "dynamic"}, {"past_key_values": DynamicCache()}, {"seed": 1}],
    ids=str,
)
def test_caches_and_seeds_change_nothing_of_a_greedy_answer(settings: dict[str, Any]) -> None:
    assert answer(toy_model(), **settings) == answer(toy_model())


def test_a_conversation_goes_on_from_its_cache() -> None:
    """With an image that the model generated, and one that is shown, in what is cached and in what is new."""
    model, codes = toy_model(), random_codes(toy_model(), 2)
    with torch.no_grad():
        model.model.image_embedding.image_in.weight.mul_(5)
    first = torch.tensor([[*input_image(model), 5, 6, 7]])
    settings = {"max_new_tokens": 12, "logits_processor": follows(ANSWER), **GREEDY}
    cache = DynamicCache()
    ids = model.generate(first, image_codes=codes[:1], past_key_values=cache, **settings)
    assert ids[0].tolist().count(BOI) == 2 and cache.get_seq_length() == ids.shape[1] - 1
    for ending in ([30, 7], [30, BOI]):
        longer = torch.cat([ids, torch.tensor([[*input_image(model), *ending]])], dim=1)
        plain = model.generate(longer, image_codes=codes, **settings)
        for given in (codes, codes[1:]):
            kept = model.generate(first, image_codes=codes[:1], past_key_values=(again := DynamicCache()), **settings)
            assert torch.equal(kept, ids)
            found = model.generate(longer, image_codes=given, past_key_values=again, **settings)
            assert torch.equal(found, plain)
    with pytest.raises(ValueError, match="pass the ids and the mask of the whole conversation"):
        model.generate(torch.tensor([[9]]), past_key_values=cache, **settings)


# --- kinds of decoding


def test_beam_search_of_text_is_hfs() -> None:
    model = toy_model(tied=False)
    twin = LlamaForCausalLM(model.config.text_config).eval()
    twin.model, twin.lm_head = model.model.language_model, model.lm_head
    ids = [EOI, BOI, 63, *range(OFFSET, OFFSET + 32)]  # ids that text never has
    settings = {"num_beams": 4, "num_return_sequences": 2, "max_new_tokens": 6, "do_sample": False}
    settings |= {"eos_token_id": EOS, "pad_token_id": 0, "output_scores": True, "return_dict_in_generate": True}
    expected = twin.generate(PROMPT, suppress_tokens=ids, **settings)
    found = model.generate(PROMPT, generation_mode="text", **settings)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores)


@pytest.mark.parametrize("assistant", [{"prompt_lookup_num_tokens": 3}, {"same": True}, {"same": False}], ids=str)
def test_assistants_change_nothing(assistant: dict[str, Any]) -> None:
    if "same" in assistant:
        assistant = {"assistant_model": toy_model(seed=0 if assistant["same"] else 3)}
    assert answer(toy_model(), **assistant) == answer(toy_model())
    free = {"logits_processor": None, "max_images": 0, "max_new_tokens": 30}
    assert answer(toy_model(), **assistant, **free) == answer(toy_model(), **free)


def test_a_streamer_is_given_every_id_once_and_ends_once() -> None:
    class Records:
        def __init__(self) -> None:
            self.ids: list[int] = []
            self.ends = 0

        def put(self, value: torch.Tensor) -> None:
            self.ids += value.flatten().tolist()

        def end(self) -> None:
            self.ends += 1

    for settings in ({}, {"generation_mode": "image"}, {"prompt_lookup_num_tokens": 2}, {"max_new_tokens": 2}):
        streamer = Records()
        expected = answer(toy_model(), **settings)
        assert answer(toy_model(), **settings, streamer=streamer) == expected
        assert streamer.ids == [5, 6, 7, *expected] and streamer.ends == 1


def test_a_loop_of_the_callers_own() -> None:
    model = toy_model()
    found = model.generate(PROMPT, custom_generate=lambda model, input_ids, **kwargs: input_ids + 1)
    assert torch.equal(found, PROMPT + 1)
    own = {"generation_mode": "text", "seed": 3, "generator": torch.Generator(), "image_sampling": ImageSampling()}
    for name, value in {**own, "max_images": 0, "negative_prompt_ids": PROMPT}.items():
        with pytest.raises(ValueError, match=f"^{name}: a loop of custom_generate"):
            model.generate(PROMPT, custom_generate=lambda model, input_ids, **kwargs: input_ids, **{name: value})


REFUSED: dict[str, dict[str, Any]] = {
    "num_beams 4 searches for text": {"num_beams": 4},
    "guidance_scale 2.0 needs negative_prompt_ids": {"guidance_scale": 2.0},
    "guidance_scale 2.0 and image_sampling's 3.0 differ": {
        "guidance_scale": 2.0,
        "image_sampling": ImageSampling(guidance_scale=3.0),
    },
    "assistant_early_exit": {"assistant_early_exit": 1},
    "cache_implementation 'static'": {"cache_implementation": "static"},
    "cache_implementation 'paged'": {"cache_implementation": "paged"},
    "cache_implementation 'offloaded'": {"cache_implementation": "offloaded"},
    "StaticCache": {"past_key_values": StaticCache(config=toy_model().config.text_config, max_cache_len=64)},
    "token_healing": {"token_healing": True},
    "prefill_chunk_size": {"prefill_chunk_size": 2},
    "synced_gpus True": {"synced_gpus": True},
    "inputs_embeds": {"inputs_embeds": torch.zeros(1, 3, 32)},
    "position_ids": {"position_ids": torch.tensor([[0, 1, 2]])},
    "document_ids": {"document_ids": torch.tensor([[0, 0, 0]])},
    "labels": {"labels": PROMPT},
    "do_smaple": {"do_smaple": True},
    "Contrastive Search": {"penalty_alpha": 0.6, "top_k": 4},
    "Dola": {"dola_layers": "high"},
    "Group Beam Search": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "generation_mode": "text"},
    "stop strings": {"stop_strings": ["x"]},
    "generation_mode 'audio'; choose from text, image, interleaved": {"generation_mode": "audio"},
    "generation_mode text and max_images 2": {"generation_mode": "text", "max_images": 2},
    "generation_mode image and max_images 0": {"generation_mode": "image", "max_images": 0},
    "max_images -1": {"max_images": -1},
    "generator and seed": {"seed": 1, "generator": torch.Generator()},
    "num_beams 2 with do_sample": {"num_beams": 2, "do_sample": True, "seed": 1, "generation_mode": "text"},
    "assisted generation with do_sample": {"prompt_lookup_num_tokens": 2, "do_sample": True, "seed": 1},
    "output_attentions with assisted": {"prompt_lookup_num_tokens": 2, "output_attentions": True},
    "negative": {"temperature": -1.0, "do_sample": True},
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    match = "strictly positive" if name == "negative" else name
    with warnings.catch_warnings(), pytest.raises(ValueError, match=match):
        answer(toy_model(), **({} if "do_sample" in REFUSED[name] else {}), **REFUSED[name])
