"""Every way of tuning in every engine, on two CPU processes: what one process computes with the same batch.

For each cell: the loss curve within 1e-4 (relative), text rows and image tokenizer to the bit, a checkpoint that
draws, and a resumed run that ends where the whole one does. All cells: `pytest -m engines`; `ALWAYS` run every time.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from accelerate.utils import is_deepspeed_available
from conftest import ROOT
from pairs import toy_pairs
from recipe_jobs import main as run_jobs
from safetensors.torch import load_file
from toys import make_tokenizer, make_vq, save_llm
from transformers import LlamaConfig, LlamaForCausalLM

from unified import UnifiedConfig
from unified.checkpoints.extension import extend
from unified.checkpoints.loading import load
from unified.data.preferences import write_pairs
from unified.inference.text_to_image import draw

TUNINGS = {
    "full": ["--tuning", "full"],
    "align": ["--tuning", "align"],
    "lora": ["--tuning", "lora"],
    "lora_image": ["--tuning", "lora", "--lora_positions", "image_tokens"],
    "noise": ["--tuning", "full", "--code_noise", "0.5"],
    "dpo_full": ["--tuning", "full"],
    "dpo_lora": ["--tuning", "lora"],
}
TIED = ("full", "noise", "dpo_lora")  # models whose embedding is the output matrix; others have both
ENGINES = {
    "ddp": [],
    "ddp_checkpointed": ["--activation_checkpointing", "True"],
    "zero2": ["--weight_decay", "0.5"],
    "zero3": ["--weight_decay", "0.5"],
    "fsdp2": ["--weight_decay", "0.5"],
}
SKIPPED = dict.fromkeys(
    [("zero3", "lora"), ("zero3", "lora_image")],
    "PEFT 0.21 starts token rows under ZeRO-3 on CUDA alone (TrainableTokensLayer._collect_token_weights)",
)
ALWAYS = {"ddp_checkpointed": ["lora_image", "align"], "zero3": ["full", "dpo_full"], "fsdp2": ["align", "lora"]}
STEPS, HALF = 4, 2


@dataclass
class World:
    """Models, rows, and the runs of them that there are, under `folder`."""

    folder: Path
    rows: Path

    def base(self, tuning: str) -> Path:
        return self.folder / ("tied" if tuning in TIED else "untied")

    def command(self, engine: str, tuning: str, out: Path) -> list[str]:
        recipe = "dpo" if tuning.startswith("dpo") else "sft"
        data = self.folder / "pairs.parquet" if recipe == "dpo" else self.rows
        batch = "4" if engine == "one" else "2"
        command = [f"recipes/{recipe}.py", "--config", f"recipes/configs/tiny{'_dpo' if recipe == 'dpo' else ''}.yaml"]
        command += ["--model", str(self.base(tuning)), "--train_files", str(data), "--output_dir", str(out)]
        command += ["--per_device_train_batch_size", batch, "--max_steps", str(STEPS), "--save_steps", str(HALF)]
        command += ["--train_sampling_strategy", "sequential", "--report_to", "none", "--disable_tqdm", "True"]
        return [*command, *TUNINGS[tuning]]

    def one(self, tuning: str, decay: bool) -> Path:
        """A run of one process; where `decay` the weights do."""
        out = self.folder / "one" / f"{tuning}-{decay}"
        if not out.exists():
            run_jobs([[*self.command("one", tuning, out), "--use_cpu", "True", *(ENGINES["zero2"] if decay else [])]])
        return out

    def launch(self, engine: str, tunings: list[str]) -> Path:
        """Run cells of an engine in one launch, each whole and resumed; returns their folder."""
        folder, jobs = self.folder / engine, []
        for tuning in tunings:
            whole, resumed = folder / tuning, folder / f"{tuning}-resumed"
            more = ["--ddp_backend", "gloo", *ENGINES[engine]]
            more += [] if engine.startswith("zero") else ["--use_cpu", "True"]
            jobs += [[*self.command(engine, tuning, whole), *more]]
            jobs += [["copy", str(whole / f"checkpoint-{HALF}"), str(resumed / f"checkpoint-{HALF}")]]
            jobs += [[*self.command(engine, tuning, resumed), *more, "--resume", "True"]]
        path = self.folder / f"{engine}.json"
        path.write_text(json.dumps(jobs))
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "HF_HUB_OFFLINE": "1"}
        environment |= {"DS_ACCELERATOR": "cpu"} | ({"RECIPE_JOBS_FSDP2": "1"} if engine == "fsdp2" else {})
        command = [sys.executable, "-m", *self.launcher(engine), str(ROOT / "tests/recipe_jobs.py"), str(path)]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
        log = self.folder / f"{engine}.log"
        with log.open("w") as file:
            result = subprocess.run(
                command, cwd=ROOT, env=inherited | environment, stdout=file, stderr=file, timeout=1800
            )
        assert result.returncode == 0, log.read_text()[-6000:]
        return folder

    def launcher(self, engine: str) -> list[str]:
        """Modules and options that start two processes; ZeRO-3 parts all parameters, however small."""
        if engine.startswith("ddp"):
            return ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        if engine == "fsdp2":
            options = ["--config_file", "recipes/accelerate_configs/fsdp2.yaml", "--num_processes", "2"]
            return ["accelerate.commands.launch", *options, "--mixed_precision", "no"]
        text = (ROOT / f"recipes/accelerate_configs/cpu_{engine}.yaml").read_text()
        if engine == "zero3":
            sizes = {"stage": 3, "stage3_param_persistence_threshold": 0}
            auto = dict.fromkeys(
                ["train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"], "auto"
            )
            zero = {"zero_optimization": sizes | {"stage3_gather_16bit_weights_on_model_save": True}}
            (self.folder / "zero3.deepspeed.json").write_text(json.dumps(auto | zero))
            text = f"""compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
deepspeed_config: {{deepspeed_config_file: {self.folder / "zero3.deepspeed.json"}, zero3_init_flag: true}}
num_machines: 1
num_processes: 2
main_process_port: 0
"""
        (self.folder / f"{engine}.yaml").write_text(text)
        return ["accelerate.commands.launch", "--config_file", str(self.folder / f"{engine}.yaml")]


@pytest.fixture
def world(tmp_path: Path, toy_rows: Callable[[str], Path]) -> Iterator[World]:
    folder = tmp_path
    make_vq().save_pretrained(folder / "vq")
    llm = save_llm(folder / "llm", make_tokenizer())
    extend(llm, folder / "vq", folder / "tied")
    config = LlamaConfig.from_pretrained(llm, tie_word_embeddings=False)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "other")
    make_tokenizer().save_pretrained(folder / "other")
    extend(folder / "other", folder / "vq", folder / "untied")
    stored = UnifiedConfig.from_pretrained(folder / "tied")
    write_pairs(folder / "pairs.parquet", toy_pairs("iitttuuimmtt"), stored.vq_fingerprint, stored.patch_nums)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield World(folder, toy_rows("dattttdatttt"))


def curve(out: Path, name: str) -> list[float]:
    entries = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in entries if "loss" in entry]


def weights(out: Path) -> dict[str, torch.Tensor]:
    adapter = out / "adapter_model.safetensors"
    return load_file(adapter if adapter.is_file() else out / "model.safetensors")


def check_cell(world: World, engine: str, tuning: str) -> None:
    out = world.folder / engine / tuning
    found = weights(out)
    if tuning != "noise":  # which is another in every batch
        check_curve(out, world.one(tuning, decay=ENGINES["zero2"] == ENGINES[engine]))
    if "lora" not in tuning:
        check_frozen_parts(found, world.base(tuning), tuning)
    resumed = out.with_name(f"{tuning}-resumed")
    assert curve(resumed, "loss") == pytest.approx(curve(out, "loss"), rel=1e-6)
    for name, value in weights(resumed).items():
        torch.testing.assert_close(value, found[name], rtol=1e-5, atol=1e-6, msg=name)
    model, processor = load(out, device="cpu")
    assert draw(model, processor, ["two cats"], seed=1)[0].size == (16, 16)


def check_curve(out: Path, one: Path) -> None:
    for name in ("loss", "grad_norm"):
        assert len(curve(out, name)) == STEPS
        assert curve(out, name) == pytest.approx(curve(one, name), rel=1e-4), name
    found, expected = weights(out), weights(one)
    assert expected.keys() <= found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)


def check_frozen_parts(found: dict[str, torch.Tensor], base: Path, tuning: str) -> None:
    """Text rows and image tokenizer, and with `align` the backbone, are those of `base` to the bit."""
    text = UnifiedConfig.from_pretrained(base).boi_token_id
    for name, value in weights(base).items():
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            assert torch.equal(found[name][:text], value[:text]) and not torch.equal(found[name], value), name
        elif "vq_model" in name or (tuning == "align" and "image_embedding" not in name):
            assert torch.equal(found[name], value), name
        elif value.ndim > 1:
            assert not torch.equal(found[name], value), name


def launches() -> Iterator[object]:
    """The engines with the cells that run every time, and with all."""
    for engine in ENGINES:
        if engine in ALWAYS:
            yield pytest.param(engine, ALWAYS[engine], id=f"{engine}-{'-'.join(ALWAYS[engine])}")
        yield pytest.param(engine, [*TUNINGS], id=f"{engine}-all", marks=pytest.mark.engines)


@pytest.mark.parametrize(("engine", "tunings"), [*launches()])
def test_an_engine_trains_as_one_process(
    engine: str, tunings: list[str], world: World, subtests: pytest.Subtests
) -> None:
    if engine.startswith("zero") and not is_deepspeed_available():
        pytest.skip("DeepSpeed is required on Linux alone")
    world.launch(engine, [tuning for tuning in tunings if (engine, tuning) not in SKIPPED])
    for tuning in tunings:
        with subtests.test(tuning):
            if (engine, tuning) in SKIPPED:
                pytest.skip(SKIPPED[engine, tuning])
            check_cell(world, engine, tuning)
