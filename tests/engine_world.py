"""What tests train on two CPU processes: models, rows, and runs of recipes, those of an engine in one launch.

All is kept in one folder, which test processes share and a killed test run leaves: what is there is not made again.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from accelerate.utils import is_deepspeed_available
from conftest import ROOT
from families import tiny_llm
from filelock import FileLock
from pairs import toy_pairs
from recipe_jobs import main as run_jobs
from toys import make_tokenizer, make_vq, save_llm, write_toy_rows
from transformers import LlamaConfig, LlamaForCausalLM

from unified import UnifiedConfig
from unified.checkpoints.extension import extend
from unified.data.preferences import write_pairs

TUNINGS = {
    "full": ["--tuning", "full"],
    "align": ["--tuning", "align"],
    "lora": ["--tuning", "lora"],
    "lora_image": ["--tuning", "lora", "--lora_positions", "image_tokens"],
    "lora_more": ["--tuning", "lora"],
    "noise": ["--tuning", "full", "--code_noise", "0.5"],
    "experts": ["--tuning", "full"],
    "dpo_full": ["--tuning", "full"],
    "dpo_lora": ["--tuning", "lora"],
}
EVALUATED = ["--eval_strategy", "steps", "--eval_steps", "3"]
# runs that are not resumed, of tests that look at something else
OTHERS = {
    "evaluated": ["--tuning", "full", *EVALUATED, "--max_steps", "6", "--sample_prompts", "two cats"],
    "dpo_evaluated": ["--tuning", "full", *EVALUATED, "--max_steps", "3", "--sample_prompts", "a cat"],
    "dpo_evaluated_lora": ["--tuning", "lora", *EVALUATED, "--max_steps", "3", "--sample_prompts", "a cat"],
    "diverges": ["--max_steps", "12", "--learning_rate", "1e18", "--new_parts_learning_rate", "1e18"],
}
OTHERS["shuffled"] = [*OTHERS["evaluated"], "--train_sampling_strategy", "random"]
OTHERS["diverges"] += ["--per_device_train_batch_size", "1", "--save_strategy", "no"]
# one process asks the reference at every step, two before the first
ON_TWO = {"dpo_evaluated_lora": ["--precompute_ref_log_probs", "True"]}
UNTIED = ("align", "lora", "lora_image", "lora_more", "dpo_full")  # models with two matrices; others have one
ENGINES = {
    "ddp": [],
    "ddp_checkpointed": ["--activation_checkpointing", "True", "--weight_decay", "0.5"],
    "zero2": ["--weight_decay", "0.5"],
    "zero2_json": ["--weight_decay", "0.5"],
    "zero3": ["--weight_decay", "0.5"],
    "fsdp2": ["--weight_decay", "0.5"],
}
STEPS, HALF = 4, 2
AUTO = dict.fromkeys(["train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"], "auto")
ADAMW = dict.fromkeys(["lr", "betas", "eps", "weight_decay"], "auto")
SCHEDULE = dict.fromkeys(["warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "total_num_steps"], "auto")
DEEPSPEED = {  # configurations in files of DeepSpeed's own form
    "zero2_json": {  # with an optimizer and a scheduler, as many have
        "zero_optimization": {"stage": 2},
        "optimizer": {"type": "AdamW", "params": ADAMW | {"torch_adam": True}},
        "scheduler": {"type": "WarmupDecayLR", "params": SCHEDULE},
    },
    "zero3": {  # all parameters are parted, however small
        "zero_optimization": {
            "stage": 3,
            "stage3_param_persistence_threshold": 0,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    },
}


def flags(engine: str, tuning: str) -> list[str]:
    """What an engine is run with; with tuning align nothing decays, and a decay is refused."""
    told = ENGINES[engine]
    return told[: told.index("--weight_decay")] if tuning == "align" and "--weight_decay" in told else told


@dataclass
class World:
    """Models, rows, and the runs of them that there are, under `folder`."""

    folder: Path

    def made(self, name: str, make: Callable[[], None]) -> None:
        """Have `make` called once, whichever process asks first."""
        with FileLock(self.folder / f"{name}.lock"):
            done = self.folder / f"{name}.made"
            if not done.exists():
                make()
                done.touch()

    def make_data(self) -> None:
        """Models with a matrix for both ends, with two, and with a mixture of experts; their rows and their pairs."""
        folder = self.folder
        make_vq().save_pretrained(folder / "vq")
        llm = save_llm(folder / "llm", make_tokenizer())
        extend(llm, folder / "vq", folder / "tied")
        config = LlamaConfig.from_pretrained(llm, tie_word_embeddings=False)
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder / "other")
        make_tokenizer().save_pretrained(folder / "other")
        extend(folder / "other", folder / "vq", folder / "untied")
        # files hold each expert by itself, the model all in one tensor; a balance loss is of a process's own batch
        tiny_llm("mixtral", config.vocab_size, sliding_window=None, router_aux_loss_coef=0.0).save_pretrained(
            folder / "mixture"
        )
        make_tokenizer().save_pretrained(folder / "mixture")
        extend(folder / "mixture", folder / "vq", folder / "experts")
        stored = UnifiedConfig.from_pretrained(folder / "tied")
        write_toy_rows(folder / "rows.parquet", "dattttdatttt", stored.vq_fingerprint)
        pairs = toy_pairs("iitttuuimmtt")
        write_pairs(folder / "pairs.parquet", pairs, stored.vq_fingerprint, stored.patch_nums)
        # whose first batch gives the second process text alone
        write_toy_rows(folder / "rows_eval.parquet", "dattttad", stored.vq_fingerprint)
        write_pairs(folder / "pairs_eval.parquet", toy_pairs("imut" * 2), stored.vq_fingerprint, stored.patch_nums)

    def base(self, tuning: str) -> Path:
        return self.folder / ("experts" if tuning == "experts" else "untied" if tuning in UNTIED else "tied")

    def model(self, tuning: str) -> Path:
        """What is trained: a base, or an adapter that goes on."""
        return self.one("lora", decay=False) if tuning == "lora_more" else self.base(tuning)

    def command(self, engine: str, tuning: str, out: Path) -> list[str]:
        recipe = "dpo" if tuning.startswith("dpo") else "sft"
        data = self.folder / ("pairs" if recipe == "dpo" else "rows")
        batch = "4" if engine == "one" else "2"
        command = [f"recipes/{recipe}.py", "--config", f"recipes/configs/tiny{'_dpo' if recipe == 'dpo' else ''}.yaml"]
        command += ["--model", str(self.model(tuning)), "--train_files", f"{data}.parquet", "--output_dir", str(out)]
        command += ["--per_device_train_batch_size", batch, "--max_steps", str(STEPS)]
        command += ["--save_steps", str(HALF)] if tuning != "diverges" else []
        command += ["--train_sampling_strategy", "sequential", "--lr_scheduler_type", "linear"]
        command += ["--report_to", "none", "--disable_tqdm", "True", "--per_device_eval_batch_size", batch]
        command += ["--eval_files", f"{data}_eval.parquet"] if "evaluated" in tuning or tuning == "shuffled" else []
        return [*command, *(TUNINGS | OTHERS)[tuning], *(ON_TWO.get(tuning, []) if engine != "one" else [])]

    def one(self, tuning: str, decay: bool = True) -> Path:
        """A run of one process; where `decay` the weights do."""
        out = self.folder / "one" / f"{tuning}-{decay}"
        job = [*self.command("one", tuning, out), "--use_cpu", "True", *(flags("zero2", tuning) if decay else [])]
        self.made(f"one-{tuning}-{decay}", lambda: run_jobs([job]))
        return out

    def cell(self, engine: str, tuning: str, together: list[str]) -> Path:
        """The run of a cell; it is launched with those `together` that are not there, and started again after them."""
        if engine.startswith("zero") and not is_deepspeed_available():
            pytest.skip("DeepSpeed is required on Linux alone")
        folder = self.folder / engine
        with FileLock(self.folder / f"{engine}.lock"):
            while not (left := folder / f"{tuning}.failed").exists() and not self.seconds(engine, tuning).exists():
                waiting = [
                    name
                    for name in (*TUNINGS, *OTHERS)
                    if name in {tuning, *together}
                    and not self.seconds(engine, name).exists()
                    and not (folder / f"{name}.failed").exists()
                ]
                self.launch(engine, waiting)
        assert not left.exists(), left.read_text()[-6000:]
        return folder / tuning

    def seconds(self, engine: str, tuning: str) -> Path:
        """The file that a cell leaves when both its runs have ended well."""
        return self.folder / engine / f"{tuning}.seconds"

    def launch(self, engine: str, tunings: list[str]) -> None:
        """Run cells in one launch, `TUNINGS` resumed, too; the first that fails ends it, with its log as `.failed`."""
        folder, jobs = self.folder / engine, []
        folder.mkdir(exist_ok=True)
        for tuning in tunings:
            whole, resumed = folder / tuning, folder / f"{tuning}-resumed"
            more = ["--ddp_backend", "gloo", *flags(engine, tuning)]
            more += [] if engine.startswith("zero") else ["--use_cpu", "True"]
            jobs += [["begin", str(whole), str(resumed)]]
            jobs += [[*(["ends"] if tuning == "diverges" else []), *self.command(engine, tuning, whole), *more]]
            if tuning in TUNINGS:
                jobs += [["copy", str(whole / f"checkpoint-{HALF}"), str(resumed / f"checkpoint-{HALF}")]]
                jobs += [[*self.command(engine, tuning, resumed), *more, "--resume", "True"]]
            jobs += [["end", str(self.seconds(engine, tuning))]]
        path = self.folder / f"{engine}.json"
        path.write_text(json.dumps(jobs))
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "HF_HUB_OFFLINE": "1"}
        environment |= {"DS_ACCELERATOR": "cpu"} | ({"RECIPE_JOBS_FSDP2": "1"} if engine == "fsdp2" else {})
        command = [sys.executable, "-m", *self.launcher(engine), str(ROOT / "tests/recipe_jobs.py"), str(path)]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
        log = self.folder / f"{engine}.log"
        with log.open("w") as file:
            subprocess.run(command, cwd=ROOT, env=inherited | environment, stdout=file, stderr=file, timeout=1800)
        failed = next((tuning for tuning in tunings if not self.seconds(engine, tuning).exists()), None)
        if failed is not None:
            log.replace(folder / f"{failed}.failed")

    def launcher(self, engine: str) -> list[str]:
        """Modules and options that start two processes."""
        if engine.startswith("ddp"):
            return ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        if engine == "fsdp2":
            options = ["--config_file", "recipes/accelerate_configs/fsdp2.yaml", "--num_processes", "2"]
            return ["accelerate.commands.launch", *options, "--main_process_port", "0", "--mixed_precision", "no"]
        if engine in DEEPSPEED:
            path = self.folder / f"{engine}.deepspeed.json"
            path.write_text(json.dumps(AUTO | DEEPSPEED[engine]))
            text = f"""compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
deepspeed_config: {{deepspeed_config_file: {path}, zero3_init_flag: {str(engine == "zero3").lower()}}}
num_machines: 1
num_processes: 2
main_process_port: 0
"""
        else:
            text = (ROOT / f"recipes/accelerate_configs/cpu_{engine}.yaml").read_text()
        (self.folder / f"{engine}.yaml").write_text(text)
        return ["accelerate.commands.launch", "--config_file", str(self.folder / f"{engine}.yaml")]
