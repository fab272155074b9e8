"""What may be loaded: folders whose tensors are exactly the model's, of models that see no later token."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from expunge.errors import ConfigurationError, ModelError
from expunge.models import load, new_adapter
from expunge.models.checkpoint import stored
from expunge.models.folders import is_hub_name
from expunge.models.loading import positions
from expunge.models.saving import save_model
from expunge.patch.arithmetic import create
from expunge.patch.edit import edit
from expunge.runs.convert import convert
from tests.conftest import build_model

SIZES = {
    "vocab_size": 408, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma2", "Phi3", "Mixtral", "GPTNeoX", "OPT", "StableLm", "Olmo2")


def build(folder: Path, tokens: Path, family: str, kind: str = "ForCausalLM", **more) -> Path:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES | more)
    getattr(transformers, family + kind)(config).save_pretrained(folder)
    for file in tokens.glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)
    return folder


def change(folder: Path, edit) -> None:
    file = folder / "model.safetensors"
    save_file(edit(load_file(file)), file, metadata={"format": "pt"})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_models_load_with_the_logits_of_transformers(tiny_folder, tmp_path, family, tied) -> None:
    folder = build(tmp_path / "m", tiny_folder, family, tie_word_embeddings=tied)
    ids = torch.tensor([[5, 6, 7, 8]])
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits
    torch.testing.assert_close(load(folder).model(ids).logits, plain, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["Llama", "Mixtral", "OPT"])
def test_every_lost_tensor_is_refused(tiny_folder, tmp_path, family) -> None:
    folder = build(tmp_path / "m", tiny_folder, family, tie_word_embeddings=False, num_hidden_layers=1)
    whole = load_file(folder / "model.safetensors")
    for name in whole:
        change(folder, lambda _, name=name: {key: value for key, value in whole.items() if key != name})
        with pytest.raises(ModelError):
            load(folder)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
def test_wrapped_names_are_refused(tiny_folder, tmp_path, prefix) -> None:
    folder = build(tmp_path / "m", tiny_folder, "Llama")
    change(folder, lambda held: {prefix + name: value for name, value in held.items()})
    with pytest.raises(ModelError, match="saved from inside a wrapper"):
        load(folder)


def test_further_tensors_are_refused_unless_they_are_buffers(tiny_folder, tmp_path) -> None:
    folder = build(tmp_path / "m", tiny_folder, "Llama")
    change(folder, lambda held: held | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    load(folder)
    change(folder, lambda held: held | {"model.layers.2.input_layernorm.weight": torch.ones(32)})
    with pytest.raises(ModelError, match=r"model\.layers\.2\.input_layernorm\.weight"):
        load(folder)


def test_a_classifier_and_another_shape_are_refused(tiny_folder, tmp_path) -> None:
    with pytest.raises(ModelError, match=r"lacks lm_head\.weight"):
        load(build(tmp_path / "c", tiny_folder, "Llama", "ForSequenceClassification", tie_word_embeddings=False))
    with pytest.raises(ModelError, match=r"score\.weight"):
        load(build(tmp_path / "t", tiny_folder, "Llama", "ForSequenceClassification", tie_word_embeddings=True))
    folder = build(tmp_path / "s", tiny_folder, "Llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(ModelError, match=r"with shape \(48, 32\)|with shape \(32, 48\)"):
        load(folder)


def test_encoders_are_refused_and_their_decoders_are_not(tiny_folder, tmp_path) -> None:
    for family in ("Bert", "Roberta"):
        kind = "LMHeadModel" if family == "Bert" else "ForCausalLM"
        with pytest.raises(ModelError, match="is not a causal language model"):
            load(build(tmp_path / family, tiny_folder, family, kind, tie_word_embeddings=True))
        load(build(tmp_path / f"{family}-d", tiny_folder, family, kind, tie_word_embeddings=True, is_decoder=True))
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    with pytest.raises(ModelError, match="encoder-decoder"):
        load(build(tmp_path / "bart", tiny_folder, "Bart", "ForConditionalGeneration", **sizes))


def test_an_adapter_must_fit_its_base(tiny_folder, tmp_path) -> None:
    save_model(new_adapter(load(tiny_folder), 2), tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    whole = load_file(file)
    lost = min(whole)
    save_file({name: value for name, value in whole.items() if name != lost}, file)
    with pytest.raises(ModelError, match=r"lacks .*lora_A"):
        load(tmp_path / "a")


def test_flash_attention_is_replaced_with_a_note(tiny_folder, tmp_path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    for key in ("attn_implementation", "_attn_implementation"):
        (folder / "config.json").write_text(json.dumps(config | {key: "flash_attention_2", "return_dict": False}))
        ids = torch.tensor([[5, 6, 7]])
        assert torch.equal(load(folder, note=lambda _: None).model(ids).logits, load(tiny_folder).model(ids).logits)


def test_devices_paths_and_float8(tiny_folder, tmp_path, monkeypatch) -> None:
    with pytest.raises(ConfigurationError, match="--device nosuch"):
        load(tiny_folder, device="nosuch")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    assert not is_hub_name("out/modle")
    with pytest.raises(ModelError, match="no such folder"):
        load("out/modle")
    folder = build(tmp_path / "f8", tiny_folder, "Llama")
    change(folder, lambda held: {name: value.to(torch.float8_e4m3fn) for name, value in held.items()})
    with pytest.raises(ModelError, match="F8_E4M3"):
        load(folder)


def test_positions_by_any_name() -> None:
    assert positions(transformers.MptConfig(max_seq_len=48)) == 48
    assert positions(transformers.RobertaConfig(max_position_embeddings=66, pad_token_id=1)) == 64
    assert positions(transformers.XLNetConfig()) is None


def test_the_vision_part_of_a_folder_stays_bit_by_bit(tiny_folder, tmp_path) -> None:
    text = SIZES | {"head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 2}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32}
    folder = build(
        tmp_path / "vl", tiny_folder, "Qwen3_5", "ForConditionalGeneration", text_config=text, vision_config=vision
    )
    loaded = load(folder)
    with torch.no_grad():
        for param in loaded.model.parameters():
            param.add_(0.5)
    save_model(loaded, tmp_path / "out")
    before, after = stored(folder), stored(tmp_path / "out")
    assert set(before) == set(after)
    for name in before:
        assert torch.equal(before[name].read(), after[name].read()) == ("visual" in name), name


def test_an_edit_of_a_differing_head_that_the_configuration_calls_tied(tiny_folder, tmp_path) -> None:
    folders = [tmp_path / name for name in ("base", "plus", "minus")]
    heads, inputs = [], []
    for seed, folder in enumerate(folders):
        shutil.copytree(tiny_folder, folder)
        torch.manual_seed(seed)
        change(folder, lambda held: {name: value + torch.randn_like(value) for name, value in held.items()})
        change(folder, lambda held: held | {"lm_head.weight": torch.randn_like(held["model.embed_tokens.weight"])})
        held = load_file(folder / "model.safetensors")
        heads.append(held["lm_head.weight"])
        inputs.append(held["model.embed_tokens.weight"])
    edit(folders[0], plus=folders[1], minus=folders[2], scale=0.5, out=tmp_path / "out")
    out = load_file(tmp_path / "out" / "model.safetensors")
    torch.testing.assert_close(out["lm_head.weight"], heads[0] + 0.5 * (heads[1] - heads[2]))
    torch.testing.assert_close(out["model.embed_tokens.weight"], inputs[0] + 0.5 * (inputs[1] - inputs[2]))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig"])
def test_prompt_adapters_load_from_folders_and_can_be_trained(tiny_folder, tmp_path, kind) -> None:
    settings = getattr(peft, kind)(num_virtual_tokens=4, task_type="CAUSAL_LM")
    made = peft.get_peft_model(load(tiny_folder).model, settings).eval()
    made.peft_config["default"].base_model_name_or_path = str(tiny_folder)
    made.save_pretrained(tmp_path / "a")
    loaded = load(tmp_path / "a")
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded.model(ids).logits, made(ids).logits)
    trained = [name for name, param in loaded.model.named_parameters() if param.requires_grad]
    assert trained == ["prompt_encoder.default.embedding.weight"]


@pytest.mark.parametrize("work", ["edit", "patch", "convert"])
def test_arithmetic_refuses_a_base_that_lacks_a_tensor(tmp_path: Path, work: str) -> None:
    """Folders were combined tensor by tensor, and what was lost in all of them was lost in silence."""
    for seed, name in enumerate(("base", "other")):
        build_model(300, seed=seed).save_pretrained(tmp_path / name)
        file = tmp_path / name / "model.safetensors"
        tensors = load_file(file)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, file, {"format": "pt"})
    base, other, out = tmp_path / "base", tmp_path / "other", tmp_path / "out"
    if work == "convert":
        from peft import LoraConfig, get_peft_model

        adapter = get_peft_model(build_model(300), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        adapter.save_pretrained(tmp_path / "adapter")
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(base)
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        if work == "edit":
            edit(base, plus=other, minus=base, scale=0.5, out=out)
        elif work == "patch":
            create(base, other, out)
        else:
            convert(tmp_path / "adapter", out)
    assert not out.exists()
