"""LoRA patches: adapter folders, merges against peft and against fp64, reverts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from expunge.errors import PatchError
from expunge.models import Loaded, load, saving
from expunge.models.fingerprint import fingerprint
from expunge.patch import apply, create, revert
from tests.models.test_checkpoint import everything, in_dtype

WEIGHTS = "model.safetensors"
TOKENS = torch.tensor([[3, 4, 5, 6, 7]])
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"r": 2, "lora_alpha": 8, "target_modules": "all-linear"},
    "rank-stabilised": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "patterns": {
        "r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"up_proj": 3}, "alpha_pattern": {"layers.1.mlp.up_proj": 5},
    },
    "dora": {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj"], "use_dora": True},
    "norms saved whole": {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj"], "modules_to_save": ["norm"]},
}  # fmt: skip
PLAIN = ("plain", "rank-stabilised", "patterns")


def trained(base: Path, out: Path, **options: Any) -> tuple[Loaded, Path]:
    """An adapter on `base` with random values in it, and its folder."""
    loaded = load(base)
    torch.manual_seed(2)
    model = get_peft_model(loaded.model, LoraConfig(task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    loaded = Loaded(model.eval(), loaded.tokenizer, base)
    saving.save_model(loaded, out)
    return loaded, out


def peft_merged(loaded: Loaded) -> nn.Module:
    return loaded.model.merge_and_unload()


@pytest.mark.parametrize("variant", VARIANTS)
def test_apply_unmerged_merged_and_revert(tiny_folder: Path, tmp_path: Path, variant: str) -> None:
    loaded, adapter = trained(tiny_folder, tmp_path / "adapter", **VARIANTS[variant])
    before = everything(tiny_folder)
    patch = create(tiny_folder, adapter, tmp_path / "patch", method="npo")
    assert patch.manifest.kind == "lora"
    unmerged = apply(patch, tiny_folder, tmp_path / "unmerged")
    assert fingerprint(unmerged) == fingerprint(adapter)
    with torch.no_grad():
        expected = loaded.model(TOKENS).logits
        assert torch.equal(load(unmerged).model(TOKENS).logits, expected)
        merged = apply(patch, tiny_folder, tmp_path / "merged", merge=True)
        torch.testing.assert_close(
            load(merged).model(TOKENS).logits, expected, rtol=1e-4, atol=5e-5
        )  # fp32: B·A is summed first
    theirs = peft_merged(loaded).state_dict()
    for name, tensor in load_file(merged / WEIGHTS).items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=1e-6)
    assert everything(revert(patch, unmerged, tmp_path / "back")) == everything(tiny_folder) == before
    with pytest.raises(PatchError, match="Once merged it cannot be taken out exactly"):
        revert(patch, merged, tmp_path / "x")
    with pytest.raises(PatchError, match="there is nothing to revert"):
        revert(patch, tiny_folder, tmp_path / "x")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"adapter", "patch", "unmerged", "merged", "back"}


def test_statistics_are_those_of_the_update(tiny_folder: Path, tmp_path: Path) -> None:
    _, adapter = trained(tiny_folder, tmp_path / "adapter", **VARIANTS["plain"])
    report = create(tiny_folder, adapter, tmp_path / "patch").inspect()
    state, base = load_file(adapter / "adapter_model.safetensors"), load_file(tiny_folder / WEIGHTS)
    assert len(report["tensors"]) == len(state) / 2 == report["totals"]["tensors_changed"]
    squares = 0.0
    for row in report["tensors"]:
        stem = f"base_model.model.{row['name'].removesuffix('.weight')}"
        a, b = (state[f"{stem}.lora_{half}.weight"].double() for half in "AB")
        delta, weight = 4 * b @ a, base[row["name"]].double()
        assert row["change_norm"] == pytest.approx(float(delta.norm()), rel=1e-6)
        assert row["max_change"] == pytest.approx(float(delta.abs().max()), rel=1e-6)
        assert row["relative"] == pytest.approx(float(delta.norm() / weight.norm()), rel=1e-6)
        squares += float(delta.norm()) ** 2
    assert report["totals"]["change_norm"] == pytest.approx(squares**0.5, rel=1e-6)
    whole = sum(float(weight.double().norm()) ** 2 for weight in base.values()) ** 0.5
    assert report["totals"]["base_norm"] == pytest.approx(whole, rel=1e-6)


def test_a_merge_into_bf16_rounds_once(tiny_folder: Path, tmp_path: Path) -> None:
    base = in_dtype(tiny_folder, tmp_path / "base", torch.bfloat16)
    _, adapter = trained(base, tmp_path / "adapter", **VARIANTS["plain"])
    patch = create(base, adapter, tmp_path / "patch")
    merged = load_file(apply(patch, base, tmp_path / "merged", merge=True) / WEIGHTS)
    state = load_file(adapter / "adapter_model.safetensors")
    wrong = total = 0
    for name, weight in load_file(base / WEIGHTS).items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" not in state:
            assert torch.equal(merged[name], weight)
            continue
        a, b = (state[f"{stem}.lora_{half}.weight"].double() for half in "AB")
        wrong += int((merged[name] != (weight.double() + 4 * b @ a).bfloat16()).sum())
        total += weight.numel()
    assert total > 10_000
    # Only where the exact sum lies within fp32's rounding of the middle of two bf16 numbers may the two differ.
    assert wrong <= total * 1e-3


@pytest.mark.parametrize("prefixed", [True, False])
def test_transposed_layers_of_gpt2(tiny_folder: Path, tmp_path: Path, prefixed: bool) -> None:
    torch.manual_seed(0)
    base = tmp_path / "gpt2"
    config = GPT2Config(vocab_size=400, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=1)
    model = GPT2LMHeadModel(config)
    (model if prefixed else model.transformer).save_pretrained(base)
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(base)
    for file in tiny_folder.glob("tokenizer*"):
        shutil.copyfile(file, base / file.name)
    options = {"r": 2, "lora_alpha": 4, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    loaded, adapter = trained(base, tmp_path / "adapter", **options)
    patch = create(base, adapter, tmp_path / "patch")
    assert patch.manifest.totals.tensors_changed == 6
    merged = load_file(apply(patch, base, tmp_path / "merged", merge=True) / WEIGHTS)
    theirs = peft_merged(loaded).state_dict()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, theirs[name if prefixed else f"transformer.{name}"], rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_merging_a_tied_weight_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    _, adapter = trained(tiny_folder, tmp_path / "adapter", r=2, target_modules=["lm_head", "q_proj"])
    patch = create(tiny_folder, adapter, tmp_path / "patch")
    with pytest.raises(PatchError, match="two uses of a tied weight"):
        apply(patch, tiny_folder, tmp_path / "merged", merge=True)
    assert apply(patch, tiny_folder, tmp_path / "unmerged").is_dir()
    assert not (tmp_path / "merged").exists()


def test_a_merge_too_large_for_fp16_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    base = in_dtype(tiny_folder, tmp_path / "base", torch.float16)
    _, adapter = trained(base, tmp_path / "adapter", r=2, lora_alpha=10**7, target_modules=["q_proj"])
    patch = create(base, adapter, tmp_path / "patch")
    with pytest.raises(PatchError, match=r"q_proj\.weight has values too large for torch\.float16"):
        apply(patch, base, tmp_path / "merged", merge=True)
    assert not (tmp_path / "merged").exists()


def test_adapters_of_another_base_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    _, adapter = trained(tiny_folder, tmp_path / "adapter", **VARIANTS["plain"])
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    AutoModelForCausalLM.from_pretrained(tiny_folder).to(torch.bfloat16).save_pretrained(other)
    with pytest.raises(PatchError, match=r"is an adapter for .*whose weights are not those of"):
        create(other, adapter, tmp_path / "x")
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": None}))
    patch = create(tiny_folder, adapter, tmp_path / "patch")
    with pytest.raises(PatchError, match="is not the base model of this patch"):
        apply(patch, other, tmp_path / "x")
    with pytest.raises(PatchError, match="has the patch already"):
        apply(patch, adapter, tmp_path / "x")


def test_revert_needs_the_base_in_place(tiny_folder: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_folder, base)
    _, adapter = trained(base, tmp_path / "adapter", **VARIANTS["plain"])
    patch = create(base, adapter, tmp_path / "patch")
    AutoModelForCausalLM.from_pretrained(base).to(torch.bfloat16).save_pretrained(base)
    with pytest.raises(PatchError, match="is not the base model of this patch"):
        revert(patch, adapter, tmp_path / "x")
    shutil.rmtree(base)
    with pytest.raises(PatchError, match="is not a folder here"):
        revert(patch, adapter, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_non_finite_adapter_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    loaded, _ = trained(tiny_folder, tmp_path / "adapter", **VARIANTS["plain"])
    name, weight = next((name, p) for name, p in loaded.model.named_parameters() if p.requires_grad)
    with torch.no_grad():
        weight.view(-1)[0] = torch.nan
    saving.save_model(loaded, tmp_path / "bad")
    with pytest.raises(PatchError, match=name.replace(".default", "") + " in .*bad has 1 NaN"):
        create(tiny_folder, tmp_path / "bad", tmp_path / "patch")


def test_the_manifest_holds_the_adapters_configuration(tiny_folder: Path, tmp_path: Path) -> None:
    _, adapter = trained(tiny_folder, tmp_path / "adapter", **VARIANTS["patterns"])
    patch = create(tiny_folder, adapter, tmp_path / "patch")
    out = apply(patch, tiny_folder, tmp_path / "out")
    ours, theirs = (json.loads((folder / "adapter_config.json").read_text()) for folder in (out, adapter))
    assert ours == theirs
    assert ours["base_model_name_or_path"] == str(tiny_folder.resolve())
