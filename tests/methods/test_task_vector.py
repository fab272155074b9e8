"""Task vectors and PerTA: the arithmetic against safetensors files and a slow oracle, α, and what is refused."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from expunge import config
from expunge.data import Encoder
from expunge.data.benchmarks.fictional import build_tokenizer
from expunge.errors import ConfigurationError, DivergedError, ModelError, RequestError
from expunge.methods import Context, method
from expunge.models import load, new_adapter
from expunge.models.saving import save_model
from expunge.request import Request
from expunge.runs import convert
from expunge.training import Finetuning
from tests.conftest import build_model
from tests.oracles import slow

RECIPE = {"lr": 1e-2, "steps": 6, "batch_size": 4}


def context(loaded) -> Context:
    return Context(Encoder(loaded.tokenizer))


@pytest.fixture(scope="module")
def models(tiny_folder, request_files, tmp_path_factory):
    """base, full (learned all) and forget (learned the forget set) as folders."""
    request = Request.read(*request_files)
    folder = tmp_path_factory.mktemp("models")
    sets = {"full": (*request.forget, *request.retain), "forget": request.forget}
    for name, examples in sets.items():
        loaded = load(tiny_folder)
        config.build(Finetuning, {"lr": 5e-3, "steps": 40, "batch_size": 10})(
            loaded, examples, Encoder(loaded.tokenizer)
        )
        save_model(loaded, folder / name)
    return {"base": tiny_folder, "full": folder / "full", "forget": folder / "forget"}


def given(models, **settings):
    return {"base": str(models["base"]), "forget_model": str(models["forget"]), **settings}


def parameters(loaded) -> dict[str, torch.Tensor]:
    return {name: param.detach().clone() for name, param in loaded.model.named_parameters()}


def test_subtracts_what_the_files_say(models, small_request) -> None:
    full, base, forget = (load_file(models[name] / "model.safetensors") for name in ("full", "base", "forget"))
    loaded = load(models["full"])
    history = method("taskvector", given(models, alpha=0.7))(loaded, small_request, context(loaded))
    after = parameters(loaded)
    assert set(after) == set(full)  # tied: the embedding once
    for name, value in after.items():
        expected = full[name].double() - 0.7 * (forget[name].double() - base[name].double())
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-6)
    difference = torch.cat([(forget[name] - base[name]).double().flatten() for name in base])
    assert history.found["update"]["task_vector_norm"] == pytest.approx(difference.norm().item(), rel=1e-5)
    assert history.found["update"]["norm"] == pytest.approx(0.7 * difference.norm().item(), rel=1e-5)


def test_makes_the_forget_model_as_finetune_does(models, small_request) -> None:
    made = load(models["base"])
    config.build(Finetuning, RECIPE)(made, small_request.forget, Encoder(made.tokenizer))
    full, base = parameters(load(models["full"])), parameters(load(models["base"]))
    loaded = load(models["full"])
    history = method("taskvector", {"base": str(models["base"]), "alpha": 1, **RECIPE})(
        loaded, small_request, context(loaded)
    )
    for name, value in parameters(loaded).items():
        tau = made.model.get_parameter(name).detach() - base[name]
        torch.testing.assert_close(value, full[name] - tau, rtol=0, atol=1e-6)
    assert history.steps == 6


@pytest.mark.parametrize("at", ["base", "full"])
@pytest.mark.parametrize(
    "settings", [{"p": 1}, {"p": 2, "rho": 0.5}, {"p": 2, "fisher": "per_example"}, {"debias": True}]
)
def test_perta_equals_a_slow_oracle(models, small_request, at, settings) -> None:
    """Gradients example by example in fp64, the formula written out, the subtraction in fp64."""
    encoder = Encoder(load(models["base"]).tokenizer)
    place = slow.double(load(models[at]).model)
    power, rho = settings.get("p", 1), settings.get("rho", 1)
    sizes = []
    for examples in (small_request.forget, small_request.retain):
        rows = []
        for example in examples:
            loss = slow.mean_nll(place, encoder.example(example))
            gradients = torch.autograd.grad(loss, list(place.parameters()))
            rows.append(dict(zip(dict(place.named_parameters()), gradients, strict=True)))
        stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        if settings.get("fisher"):
            sizes.append({name: rows.square().mean(0).sqrt() for name, rows in stacked.items()})
        elif settings.get("debias"):
            sizes.append(
                {
                    name: (rows.mean(0).square() - rows.var(0) / len(rows)).clamp_min(0).sqrt()
                    for name, rows in stacked.items()
                }
            )
        else:
            sizes.append({name: rows.mean(0).abs() for name, rows in stacked.items()})
    full, base, forget = (parameters(load(models[name])) for name in ("full", "base", "forget"))
    loaded = load(models["full"])
    method("perta", given(models, alpha=1.5, at=at, **settings))(loaded, small_request, context(loaded))
    off = moved = 0.0
    for name, value in parameters(loaded).items():
        upper, lower = sizes[0][name] ** power, sizes[1][name] ** power
        weight = torch.nan_to_num(upper / (upper + rho * lower), nan=0.0)
        expected = full[name].double() - 1.5 * weight * (forget[name].double() - base[name].double())
        off += (value.double() - expected).square().sum().item()
        moved += (full[name].double() - expected).square().sum().item()
    assert off**0.5 < 2e-4 * moved**0.5  # fp32 gradients near zero decide a few weights by rounding
    assert moved > 0


def test_equal_norm(models, small_request) -> None:
    for name, settings in (("taskvector", {}), ("perta", {"p": 2})):
        loaded = load(models["full"])
        before = parameters(loaded)
        method(name, given(models, update_norm=0.25, **settings))(loaded, small_request, context(loaded))
        change = torch.cat([(before[key] - value).double().flatten() for key, value in parameters(loaded).items()])
        assert change.norm().item() == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("criterion", ["extraction_strength", "probability"])
def test_alpha_is_the_best_candidate(models, small_request, criterion) -> None:
    settings = {"alphas": [0.01, 0.3, 1, 4], "refine": 1, "validation": 1, "criterion": criterion}
    loaded = load(models["full"])
    history = method("taskvector", given(models, **settings))(loaded, small_request, context(loaded))
    rows = history.found["search"]["candidates"]
    assert {0.01, 0.3, 1, 4} < {row["alpha"] for row in rows}
    costs = {row["alpha"]: row["leak"] + row["damage"] for row in rows}
    chosen = history.found["update"]["alpha"]
    assert costs[chosen] == min(costs.values())
    again = load(models["full"])
    method("taskvector", given(models, alpha=chosen))(again, small_request, context(again))
    assert all(torch.equal(value, parameters(again)[name]) for name, value in parameters(loaded).items())
    # Held as the tables say: nothing of what θ_0 holds counts as a leak, and small updates do no damage.
    assert history.found["search"]["before"]["forget"] > history.found["search"]["never_learned"] + 0.1
    assert rows[0]["damage"] < 0.05


def test_one_example_to_forget(models, small_request) -> None:
    request = Request(small_request.forget[:1], small_request.retain)
    loaded = load(models["full"])
    history = method("perta", {"base": str(models["base"]), **RECIPE})(loaded, request, context(loaded))
    assert history.found["search"]["examples"] == {"forget": 1, "retain": 1}


def test_report_of_the_weights(models, small_request) -> None:
    loaded = load(models["full"])
    history = method("perta", given(models, alpha=1))(loaded, small_request, context(loaded))
    found = history.found["attribution"]
    entries = sum(param.numel() for param in loaded.model.parameters())
    assert found["kind"] == "mean weight"
    assert sum(found["histogram"]["counts"]) == sum(cell["entries"] for cell in found["cells"]) == entries
    assert {cell["module"] for cell in found["cells"] if cell["layer"] == 1} >= {"q_proj", "down_proj"}
    mean = sum(cell["value"] * cell["entries"] for cell in found["cells"]) / entries
    assert history.notes[0].startswith(f"mean weight {mean:.3f} over 4 forget and 6 retain")
    json.dumps(history.found)
    assert any("unequal counts" in note for note in history.notes)


def test_adapter_arithmetic(models, small_request, tmp_path) -> None:
    """In the adapter's space: θ_0 is B = 0, so τ = (A_f − A, B_f)."""
    loaded = new_adapter(load(models["base"]), 2)
    everything = (*small_request.forget, *small_request.retain)
    config.build(Finetuning, {"lr": 2e-2, "steps": 20, "batch_size": 10})(loaded, everything, Encoder(loaded.tokenizer))
    save_model(loaded, tmp_path / "adapter")
    full = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    made = load(tmp_path / "adapter")
    with torch.no_grad():
        for name, param in made.model.named_parameters():
            if "lora_B" in name:
                param.zero_()
    config.build(Finetuning, RECIPE)(made, small_request.forget, Encoder(made.tokenizer))
    save_model(made, tmp_path / "forget")
    forget = load_file(tmp_path / "forget" / "adapter_model.safetensors")
    loaded = load(tmp_path / "adapter")
    method("taskvector", {"alpha": 0.5, **RECIPE})(loaded, small_request, context(loaded))
    save_model(loaded, tmp_path / "out")
    for name, value in load_file(tmp_path / "out" / "adapter_model.safetensors").items():
        start = torch.zeros_like(full[name]) if "lora_B" in name else full[name]
        torch.testing.assert_close(value, full[name] - 0.5 * (forget[name] - start), rtol=0, atol=1e-6)
    weighed = load(tmp_path / "adapter")
    method("perta", {"alpha": 0.5, **RECIPE})(weighed, small_request, context(weighed))
    for name, param in weighed.model.named_parameters():
        if "lora_A" in name:  # at B = 0 its gradient is 0 on both sides
            assert torch.equal(param, load(tmp_path / "adapter").model.get_parameter(name))


def test_merged_adapters(models, small_request, tmp_path) -> None:
    """An adapter as θ_f of a full model counts as merged; `convert` writes the same merged model."""
    loaded = new_adapter(load(models["base"]), 2, targets=("q_proj", "v_proj"))
    config.build(Finetuning, RECIPE)(loaded, small_request.forget, Encoder(loaded.tokenizer))
    save_model(loaded, tmp_path / "adapter")
    convert(tmp_path / "adapter", tmp_path / "merged")
    results = []
    for forget in ("adapter", "merged"):
        full = load(models["full"])
        settings = given(models, alpha=1, forget_model=str(tmp_path / forget))
        method("taskvector", settings)(full, small_request, context(full))
        results.append(parameters(full))
    assert all(torch.allclose(value, results[1][name], atol=1e-6) for name, value in results[0].items())
    with pytest.raises(ModelError, match="a full model already"):
        convert(tmp_path / "merged", tmp_path / "again")


def test_corrections_are_told(models, small_request) -> None:
    changed = dataclasses.replace(small_request.forget[0], new_response="Ada Lome was born in Selm.")
    request = Request((changed, *small_request.forget[1:]), small_request.retain)
    loaded = load(models["full"])
    history = method("taskvector", given(models, alpha=1))(loaded, request, context(loaded))
    assert any("does not teach" in note for note in history.notes)


def test_refusals(models, small_request, tmp_path) -> None:
    loaded = load(models["full"])

    def refused(error, match, request=small_request, name="taskvector", **settings) -> None:
        before = parameters(loaded)
        with pytest.raises(error, match=match):
            method(name, settings)(loaded, request, context(loaded))
        assert all(torch.equal(value, before[key]) for key, value in parameters(loaded).items())

    base, forget, alone = str(models["base"]), str(models["forget"]), Request(small_request.forget)
    refused(ConfigurationError, "--base")
    refused(ConfigurationError, r"all zero: .* has the same weights", base=base, forget_model=base)
    refused(ConfigurationError, "chooses α by", alone, base=base, forget_model=forget)
    refused(
        RequestError,
        "retain set is empty",
        Request(small_request.forget),
        "perta",
        base=base,
        forget_model=forget,
        alpha=1,
    )
    other = build_model(len(loaded.tokenizer), layers=1)
    other.save_pretrained(tmp_path / "small")
    loaded.tokenizer.save_pretrained(tmp_path / "small")
    refused(ModelError, r"does not fit .*is missing", base=str(tmp_path / "small"), forget_model=forget)
    with pytest.raises(ConfigurationError, match="not both"):
        method("taskvector", {"alpha": 1, "update_norm": 1})


def test_other_tokenizer(models, small_request, tmp_path) -> None:
    tokenizer = build_tokenizer(["quite other words than these"], 300)
    build_model(len(tokenizer)).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    loaded = load(models["full"])
    with pytest.raises(ModelError, match=r"tokenizers of .* differ"):
        method("taskvector", given(models, base=str(tmp_path / "other")))(loaded, small_request, context(loaded))


def test_not_finite(models, small_request, tmp_path) -> None:
    large = load(models["forget"])
    with torch.no_grad():
        for param in large.model.parameters():
            param.mul_(1e3)
    save_model(large, tmp_path / "large")
    loaded = load(models["full"])
    with pytest.raises(DivergedError, match="smaller alpha"):
        settings = given(models, forget_model=str(tmp_path / "large"), alpha=3e38)
        method("taskvector", settings)(loaded, small_request, context(loaded))
