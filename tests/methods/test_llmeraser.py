"""LLMEraser: against dense oracles and true retraining, on every kind of request and adapter; what it refuses."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

from expunge import config, patch
from expunge.data import Encoded, Encoder
from expunge.data.benchmarks.fictional import build_tokenizer
from expunge.errors import ConfigurationError, DivergedError, RequestError
from expunge.gradients import Curvature
from expunge.methods import Context, method
from expunge.methods.descent import mean_nll
from expunge.models import Loaded, load, new_adapter
from expunge.models.checkpoint import save_model
from expunge.request import Example, Request
from expunge.runs import unlearn
from expunge.training import Finetuning
from tests.conftest import build_model
from tests.oracles import slow
from tests.oracles.curvature import dense_gauss_newton, dense_hessian

FIXED = {"damping": 0.05, "tolerance": 1e-6, "subset": None}
RECIPE = {"lr": 2e-2, "steps": 30, "batch_size": 5}


@pytest.fixture(scope="module")
def folder(tiny_folder, request_files, tmp_path_factory) -> Path:
    """A LoRA adapter (r 1 on q and v: p = 224) that has learned the forget and the retain set somewhat."""
    request = Request.read(*request_files)
    loaded = new_adapter(load(tiny_folder), 1, targets=("q_proj", "v_proj"))
    examples = (*request.forget, *request.retain)
    config.build(Finetuning, RECIPE)(loaded, examples, Encoder(loaded.tokenizer))
    out = tmp_path_factory.mktemp("llmeraser") / "adapter"
    save_model(loaded, out)
    return out


@pytest.fixture
def adapter(folder) -> Loaded:
    return load(folder)


def context(loaded: Loaded) -> Context:
    return Context(Encoder(loaded.tokenizer))


def theta(loaded: Loaded) -> torch.Tensor:
    return torch.cat([param.detach().flatten() for param in loaded.model.parameters() if param.requires_grad])


def update(folder: Path, request: Request, **settings) -> torch.Tensor:
    """Δ [p] of one run."""
    loaded = load(folder)
    before = theta(loaded)
    method("llmeraser", {**FIXED, **settings})(loaded, request, context(loaded))
    return theta(loaded) - before


def mixed(request: Request) -> Request:
    """One instance removed, one corrected, one rewritten, one left as it is."""
    first, second, third, fourth = request.forget
    corrected = replace(second, new_response="She sells boats in Selm.")
    rewritten = replace(third, new_prompt="Who is the brother of Bo Hurst?")
    return Request((first, corrected, rewritten, replace(fourth, new_response=fourth.response)), request.retain)


def off(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian"])
def test_equals_the_dense_solve(folder, small_request, curvature) -> None:
    answers = iter(
        ("Paris.", "Una.", "ships.", "Tarn.", "Selm.", "baker.")
    )  # short: the dense matrix has a row a logit
    short = [tuple(replace(one, response=next(answers)) for one in part[:count])
             for part, count in ((small_request.forget, 4), (small_request.retain, 2))]  # fmt: skip
    request = mixed(Request(*short))
    loaded = load(folder)
    encoder = Encoder(loaded.tokenizer)
    loaded.model.get_base_model().set_attn_implementation("eager")
    items = encoder.examples((*request.forget, *request.retain))
    dense = {"gauss_newton": dense_gauss_newton, "hessian": dense_hessian}[curvature](loaded.model, items)
    model = slow.double(loaded.model)
    params = [param for param in model.parameters() if param.requires_grad]

    def gradient(item: Encoded) -> torch.Tensor:
        return torch.cat([part.flatten() for part in torch.autograd.grad(slow.mean_nll(model, item), params)])

    b = sum(gradient(item) for item in items[:4])
    b = b - sum(gradient(encoder.example(example.after)) for example in request.forget[1:])
    b = b / len(items)
    damping = max(FIXED["damping"], -2 * torch.linalg.eigvalsh(dense)[0].item())
    expected = torch.linalg.solve(dense + damping * torch.eye(len(b), dtype=torch.float64), b)
    assert off(update(folder, request, damping=damping, curvature=curvature), expected) < 1e-3


def test_a_zero_edit_changes_no_bit(adapter, small_request) -> None:
    same = tuple(replace(example, new_response=example.response) for example in small_request.forget)
    before = theta(adapter)
    history = method("llmeraser", {"rounds": 2})(adapter, Request(same, small_request.retain), context(adapter))
    assert torch.equal(theta(adapter), before)
    assert history.found["solve"]["b_norm"] == 0
    assert "changes nothing" in history.stopped


def test_a_mixture_is_the_sum_of_its_parts(folder, small_request) -> None:
    request = mixed(small_request)
    plain = small_request.forget
    parts = []
    for index in range(3):
        rest = tuple(example for place, example in enumerate(plain) if place != index)
        parts.append(update(folder, Request((request.forget[index],), (*rest, *small_request.retain))))
    assert off(update(folder, request), sum(parts)) < 1e-4


def test_an_edit_and_its_reverse_cancel(adapter, small_request) -> None:
    made, example = method("llmeraser", FIXED), replace(small_request.forget[0], new_response="In Selm.")
    back = replace(example.after, new_response=example.response)
    systems = []
    for one in (example, back):
        request = Request((one,), small_request.retain)
        edited = made.edited(request, context(adapter))
        systems.append(made.system(adapter, edited, context(adapter))[1])
    assert systems[0].any()
    assert torch.equal(systems[0], -systems[1])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_batches_change_nothing(folder, small_request, batch_size) -> None:
    whole = update(folder, mixed(small_request), batch_size=16)
    assert off(update(folder, mixed(small_request), batch_size=batch_size), whole) < 1e-4


def test_lambda_is_the_one_with_the_lowest_loss_on_what_stays(folder, small_request) -> None:
    loaded = load(folder)
    history = method("llmeraser", {"tolerance": 1e-4, "factors": [1, 10, 100, 1000]})(
        loaded, small_request, context(loaded)
    )
    (taken,) = history.found["solve"]["rounds"]
    assert [row["factor"] for row in taken["candidates"]] == [1000, 100, 10, 1]
    start, measured = theta(load(folder)), {}
    for row in taken["candidates"]:
        other = load(folder)
        settings = {"damping": row["damping"], "tolerance": 1e-4, "max_ratio": 1e9}
        method("llmeraser", settings)(other, small_request, context(other))
        measured[row["factor"]] = mean_nll(other, small_request.retain, Encoder(other.tokenizer), 4)
        assert row["loss"] == pytest.approx(measured[row["factor"]], rel=1e-3)
        assert row["ratio"] == pytest.approx(((theta(other) - start).norm() / start.norm()).item(), rel=1e-2)
    allowed = {row["factor"] for row in taken["candidates"] if row["ratio"] <= 0.5}
    assert taken["factor"] == min(allowed, key=lambda factor: measured[factor])
    assert mean_nll(loaded, small_request.retain, Encoder(loaded.tokenizer), 4) == pytest.approx(
        taken["loss"], abs=1e-4
    )


def test_a_trust_region_nothing_fits_in_is_explained(adapter, small_request) -> None:
    before = theta(adapter)
    with pytest.raises(DivergedError, match=r"Nothing was changed.*larger factors, or retrain"):
        method("llmeraser", {"max_ratio": 1e-4, "factors": [1, 10]})(adapter, small_request, context(adapter))
    assert torch.equal(theta(adapter), before)


def test_a_solve_that_does_not_converge_changes_nothing(folder, small_request, tmp_path, request_files) -> None:
    with pytest.raises(DivergedError, match="Nothing was changed"):
        unlearn(folder, *request_files, out=tmp_path / "run", method="llmeraser", settings={"seconds": 1e-9})
    assert not list(tmp_path.glob("run/*"))


def test_a_failure_in_a_later_round_gives_the_weights_back(adapter, small_request, monkeypatch) -> None:
    before, calls = theta(adapter), []
    kind = type(method("llmeraser"))
    best = kind.best

    def failing(self, tried):
        calls.append(tried)
        if len(calls) == 2:
            assert not torch.equal(theta(adapter), before)
            raise DivergedError("as if")
        return best(self, tried)

    monkeypatch.setattr(kind, "best", failing)
    with pytest.raises(DivergedError, match="as if"):
        method("llmeraser", {"rounds": 2, "factors": [100]})(adapter, small_request, context(adapter))
    assert torch.equal(theta(adapter), before)


def test_rounds_lower_the_loss_on_the_edited_set(folder, small_request) -> None:
    corrected = replace(small_request.forget[0], new_response="In Selm, at sea.")
    request = Request((corrected,), (*small_request.forget[1:], *small_request.retain))
    losses = []
    for rounds in (1, 3):
        loaded = load(folder)
        history = method("llmeraser", {"rounds": rounds, "factors": [3, 30, 300]})(loaded, request, context(loaded))
        assert len(history.found["solve"]["rounds"]) == rounds
        now = (corrected.after, *request.retain)
        losses.append(mean_nll(loaded, now, Encoder(loaded.tokenizer), 4))
        assert losses[-1] == pytest.approx(history.found["solve"]["loss_after"], abs=1e-5)
    assert losses[1] < losses[0] < history.found["solve"]["loss_before"]


def test_sgd_finds_what_cg_finds(folder, small_request) -> None:
    settings = {"damping": 1.0, "batch_size": 4}
    exact = update(folder, small_request, **settings)
    loose = {"tolerance": 0.02, "solver": "sgd", "passes": 400}
    assert off(update(folder, small_request, **settings, **loose), exact) < 0.05


def test_datainf_is_the_closed_form_of_its_paper(folder, small_request) -> None:
    """(1/n) Σ_i (λ_l I + g_il g_ilᵀ)⁻¹ b_l by dense inverses, with its own λ_l = .1 × the mean squared gradient."""
    loaded = load(folder)
    encoder = Encoder(loaded.tokenizer)
    model = slow.double(loaded.model)
    params = [param for param in model.parameters() if param.requires_grad]
    items = encoder.examples((*small_request.forget, *small_request.retain))
    gradients = [torch.autograd.grad(slow.mean_nll(model, item), params) for item in items]
    expected = []
    for place, param in enumerate(params):
        g = torch.stack([each[place].flatten() for each in gradients])  # [n, d]
        damping = 0.1 * g.square().mean()
        b = g[:4].sum(0) / len(items)
        inverses = [torch.linalg.inv(damping * torch.eye(g.shape[1]).double() + torch.outer(one, one)) for one in g]
        expected.append(sum(inverses) @ b / len(items) if damping else torch.zeros_like(param).flatten())
    settings = {"solver": "datainf", "damping": None, "factors": [0.1], "max_ratio": 1e9}
    assert off(update(folder, small_request, **settings), torch.cat(expected)) < 1e-3


KINDS = {
    "dora": peft.LoraConfig(r=2, use_dora=True, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    "ia3": peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
}


def trained(loaded: Loaded, settings: peft.PeftConfig) -> Loaded:
    torch.manual_seed(0)
    made = Loaded(peft.get_peft_model(copy.deepcopy(loaded.model), settings).eval(), loaded.tokenizer, loaded.folder)
    with torch.no_grad():
        for param in made.model.parameters():
            if param.requires_grad:
                param.add_(0.1 * torch.randn_like(param))
    return made


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated"
)  # transformers', in PEFT's prefix tuning
@pytest.mark.parametrize("kind", KINDS)
def test_other_adapters(tiny, small_request, kind) -> None:
    """Δ solves its system by an independent product: a difference of gradients (DoRA: the sound Gauss–Newton one)."""
    loaded = trained(tiny, KINDS[kind])
    encoder = Encoder(loaded.tokenizer)
    whole = encoder.examples((*small_request.forget, *small_request.retain))
    check = Curvature(loaded.model, whole, loaded.pad, "gauss_newton" if kind == "dora" else "difference")
    forget = Curvature(loaded.model, whole[:4], loaded.pad)
    b, before, nll = forget.gradient() * 0.4, theta(loaded), mean_nll(loaded, small_request.forget, encoder, 4)
    curvature = "gauss_newton" if kind == "dora" else "hessian"
    damping = 2.0 if kind == "dora" else 1.0
    products = {"curvature": curvature, "damping": damping, "tolerance": 1e-5}
    other = trained(tiny, KINDS[kind])
    method("llmeraser", products)(other, small_request, context(other))
    delta = theta(other) - before
    assert ((check(delta) + damping * delta - b).norm() / b.norm()).item() < 0.02
    assert mean_nll(other, small_request.forget, encoder, 4) > nll


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_adapters_that_do_not_fit_are_refused(tiny, small_request) -> None:
    def refused(loaded: Loaded, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            method("llmeraser")(loaded, small_request, context(loaded))

    refused(tiny, r"is a full model.*expunge finetune --lora 8")
    fresh = Loaded(copy.deepcopy(tiny.model), tiny.tokenizer, tiny.folder)
    refused(new_adapter(fresh, 1), r"has learned nothing yet.*leave --lora out")
    for name, settings in (
        ("P_TUNING", peft.PromptEncoderConfig(num_virtual_tokens=2, encoder_hidden_size=4, task_type="CAUSAL_LM")),
        ("with a projection", peft.PrefixTuningConfig(
            num_virtual_tokens=2, prefix_projection=True, encoder_hidden_size=4, task_type="CAUSAL_LM")),
        ("VERA", peft.VeraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")),
    ):  # fmt: skip
        refused(trained(tiny, settings), f"{name}.*LoRA, IA3, prompt tuning")
    refused(Loaded(new_adapter(tiny, 1).model.bfloat16(), tiny.tokenizer, tiny.folder), "is torch.bfloat16.*float32")


def regression(seed: int = 0) -> tuple[Loaded, Request]:
    """LoRA on the output layer with A frozen: logits (W + B A)h are linear in B, a softmax regression of features A h.

    40 instances with noisy answers, and 20 more as `holdout`.
    """
    tokenizer = build_tokenizer(["goose clock boat bread town port ships baker 0123456789?"], 120)
    base = build_model(len(tokenizer), seed=seed, tied=False)
    model = peft.get_peft_model(base, peft.LoraConfig(r=3, target_modules=["lm_head"], task_type="CAUSAL_LM"))
    loaded = Loaded(model.eval(), tokenizer, Path("none"))
    for name, param in loaded.model.named_parameters():
        param.requires_grad_("lora_B" in name)
    generator = torch.Generator().manual_seed(seed)
    words = ["goose", "clock", "boat", "bread", "town", "port", "ships", "baker"]

    def example(number: int) -> Example:
        drawn = torch.randint(len(words), (3,), generator=generator).tolist()
        answer = words[drawn[0] if torch.rand(1, generator=generator) < 0.7 else drawn[1]]
        prompt = f"{' '.join(words[index] for index in drawn)} {number}?"
        return Example(prompt=prompt, response=answer, id=str(number))

    made = [example(number) for number in range(60)]
    return loaded, Request(tuple(made[:1]), tuple(made[1:40]), tuple(made[40:]))


def features(loaded: Loaded, items: list[Encoded]) -> tuple[torch.Tensor, ...]:
    """Base logits [N, V], scaled features s·A h [N, r], labels [N] and weight of each token, one row a labelled token."""
    head = loaded.model.get_base_model().lm_head
    a = head.lora_A["default"].weight.double()
    base, x, labels, weights = [], [], [], []
    with torch.no_grad():
        for item in items:
            hidden = loaded.model.get_base_model().model(torch.tensor([item.ids])).last_hidden_state[0]
            hidden = hidden[item.start - 1 : -1].double()
            base.append(hidden @ head.base_layer.weight.double().T)
            x.append(head.scaling["default"] * hidden @ a.T)
            labels.append(torch.tensor(item.labels))
            weights.append(torch.full((len(item.labels),), 1 / len(item.labels)).double())
    return torch.cat(base), torch.cat(x), torch.cat(labels), torch.cat(weights)


def regress(loaded: Loaded, kept: list[Encoded], ridge: float, count: int) -> torch.Tensor:
    """argmin_B (1/n) Σ_kept l_i + ridge/2 ‖B‖², by L-BFGS in fp64: [V, r]."""
    base, x, labels, weights = features(loaded, kept)
    b = torch.zeros(base.shape[1], x.shape[1], dtype=torch.float64, requires_grad=True)
    search = {"max_iter": 300, "tolerance_grad": 1e-9, "tolerance_change": 1e-14, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([b], **search)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        nll = torch.nn.functional.cross_entropy(base + x @ b.T, labels, reduction="none")
        loss = (nll * weights).sum() / count + ridge / 2 * b.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return b.detach()


def item_losses(loaded: Loaded, items: list[Encoded], b: torch.Tensor) -> torch.Tensor:
    base, x, labels, weights = features(loaded, items)
    nll = torch.nn.functional.cross_entropy(base + x @ b.T, labels, reduction="none") * weights
    owner = torch.repeat_interleave(torch.arange(len(items)), torch.tensor([len(item.labels) for item in items]))
    return torch.zeros(len(items), dtype=torch.float64).index_add(0, owner, nll)


def test_ridge_softmax_regression_against_true_leave_k_out() -> None:
    """λ = the ridge: then Δ is the influence of the penalised optimum, and retraining without k of 40 is the truth."""
    loaded, request = regression()
    ridge, encoder = 0.02, Encoder(loaded.tokenizer)
    instances = (*request.forget, *request.retain)
    items, probes = encoder.examples(instances), encoder.examples(request.holdout)
    full = regress(loaded, items, ridge, 40)
    (param,) = (param for param in loaded.model.parameters() if param.requires_grad)
    actual, predicted, ratios = [], [], []
    for start in range(0, 40, 8):
        left_out = range(start, start + 4)
        with torch.no_grad():
            param.copy_(full)
        parts = [tuple(instances[i] for i in range(40) if (i in left_out) == inside) for inside in (True, False)]
        method("llmeraser", {**FIXED, "damping": ridge, "max_ratio": 10})(loaded, Request(*parts), context(loaded))
        kept = [items[i] for i in range(40) if i not in left_out]
        truth = regress(loaded, kept, ridge, 40)
        ratios.append(((param.detach().double() - full).norm() / (truth - full).norm()).item())
        measured = [*probes, *(items[i] for i in left_out)]
        before = item_losses(loaded, measured, full)
        actual.append(item_losses(loaded, measured, truth) - before)
        predicted.append(item_losses(loaded, measured, param.detach().double()) - before)
    both = torch.stack([torch.cat(actual), torch.cat(predicted)])
    assert torch.corrcoef(both)[0, 1] > 0.95
    assert 0.8 < sum(ratios) / len(ratios) < 1.2  # no factor 2


def lines(path: Path, *records: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_an_instance_that_was_never_trained_on_is_refused(folder, request_files, tmp_path) -> None:
    forget, retain = request_files
    train = tmp_path / "train.jsonl"
    train.write_text(forget.read_text() + retain.read_text())
    stranger = {"prompt": "Where was Ada Loom born?", "response": "Ada Loom was born in Tarn.", "id": "s1"}
    asked = lines(tmp_path / "asked.jsonl", stranger)
    message = (
        r"1 of 1 examples to forget are not in the fine-tuning set .*train\.jsonl\. The first is .*asked\.jsonl:1 id s1 "
        r"\('Where was Ada Loom born.*The nearest there is .*train\.jsonl:1 id f0 \('Where was Ada Lome born"
    )
    for name in ("llmeraser", "retrain-adapter"):
        with pytest.raises(RequestError, match=message):
            unlearn(folder, asked, out=tmp_path / "out", method=name, settings={"train": str(train)})
        with pytest.raises(RequestError, match=r"fine-tuning set is missing.*--set train=FILE"):
            unlearn(folder, asked, out=tmp_path / "out", method=name)
        with pytest.raises(RequestError, match="Nothing would be left"):
            unlearn(folder, train, out=tmp_path / "out", method=name, settings={"train": str(train)})
    assert not (tmp_path / "out").exists()


def test_the_training_file_in_place_of_the_retain_set(folder, request_files, small_request, tmp_path) -> None:
    """Its rest stays; an instance that stands there twice is removed twice."""
    forget, retain = request_files
    train = tmp_path / "train.jsonl"
    train.write_text(retain.read_text() + forget.read_text())
    request = Request(small_request.forget[:1])
    alone = update(folder, Request(request.forget, (*small_request.forget[1:], *small_request.retain)))
    assert off(update(folder, request, train=str(train)), alone) < 1e-4
    train.write_text(retain.read_text() + 2 * forget.read_text())
    made, loaded = method("llmeraser", {"train": str(train)}), load(folder)
    edited = made.edited(request, context(loaded))
    assert (len(edited.whole), len(edited.before), len(edited.kept)) == (14, 2, 12)


def test_a_request_over_two_fifths_is_warned_of(adapter, small_request) -> None:
    few = Request(small_request.forget, small_request.retain[:5])
    history = method("llmeraser", {"factors": [300]})(adapter, few, context(adapter))
    assert any("4 of 9 instances (44%)" in note and "retrain-adapter" in note for note in history.notes)
    assert history.found["solve"]["share"] == pytest.approx(4 / 9)


def test_requests_one_after_the_other_and_back(folder, small_request, tmp_path) -> None:
    """Two runs of `unlearn`: n shrinks, the path adds up; their patches compose, and go back bit for bit."""
    records = [
        {"prompt": one.prompt, "response": one.response} for one in (*small_request.forget, *small_request.retain)
    ]
    runs, models = [tmp_path / "first", tmp_path / "second"], [folder]
    moves = []
    for number, run in enumerate(runs):
        forget = lines(tmp_path / f"forget{number}.jsonl", records[number])
        retain = lines(tmp_path / f"retain{number}.jsonl", *records[number + 1 :])
        before = theta(load(models[-1]))
        settings = {"factors": [2], "max_ratio": 9}
        options = {"out": run, "method": "llmeraser", "settings": settings, "evaluate_models": False}
        unlearn(models[-1], forget, retain, **options)
        models.append(run / "model")
        moves.append(((theta(load(run)) - before).norm() / before.norm()).item())
        log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        assert log[-1]["moved"] == pytest.approx(sum(moves), rel=1e-4)
        assert [entry["residual"] for entry in log][-1] < 0.01
    assert sum(moves) > 0.2
    both = tmp_path / "both.safetensors"
    patch.compose([run / "patch.safetensors" for run in runs], both)
    patch.apply(both, folder, tmp_path / "applied")
    patch.revert(both, tmp_path / "applied", tmp_path / "reverted")
    for name, same in {"applied": models[2], "reverted": folder}.items():
        found, expected = (load_file(one / "adapter_model.safetensors") for one in (tmp_path / name, same))
        assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_the_path_that_adds_up_is_told(folder, small_request, tmp_path) -> None:
    (tmp_path / "model").mkdir()
    loaded = load(folder)
    save_model(loaded, tmp_path / "model" / "adapter")
    (tmp_path / "model" / "run.json").write_text("{}")
    (tmp_path / "model" / "log.jsonl").write_text('{"step": 0}\n{"step": 1, "moved": 0.48}\n')
    moved = load(tmp_path / "model" / "adapter")
    history = method("llmeraser", {"factors": [3]})(moved, small_request, context(moved))
    assert history.found["solve"]["moved"] > 0.5
    assert any("0.48 of it in earlier requests" in note and "retrain-adapter" in note for note in history.notes)


def test_retraining_begins_and_ends_where_training_on_what_stays_does(
    tiny_folder, folder, small_request, tmp_path
) -> None:
    corrected = replace(small_request.forget[0], new_response="In Selm.")
    request = Request((corrected, small_request.forget[1]), (*small_request.forget[2:], *small_request.retain))
    fresh = new_adapter(load(tiny_folder), 1, targets=("q_proj", "v_proj"))
    examples = (corrected.after, *request.retain)
    config.build(Finetuning, RECIPE)(fresh, examples, Encoder(fresh.tokenizer))
    results = []
    for _ in range(2):
        loaded = load(folder)
        history = method("retrain-adapter", RECIPE)(loaded, request, context(loaded))
        results.append(theta(loaded))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], theta(fresh))
    assert history.steps == 30
    assert not history.notes


def test_another_recipe_than_the_adapters_own_is_noted(folder, small_request, tmp_path) -> None:
    save_model(load(folder), tmp_path / "model")
    recipe = json.loads(json.dumps(config.to_dict(config.build(Finetuning, RECIPE))))
    (tmp_path / "run.json").write_text(json.dumps({"configuration": {"finetuning": recipe}}))
    loaded = load(tmp_path / "model")
    history = method("retrainadapter", {**RECIPE, "lr": 1e-3})(loaded, small_request, context(loaded))
    assert history.notes == ["the adapter was trained by another recipe: lr 0.02, now 0.001"]


def test_a_solve_goes_on_from_its_checkpoint(folder, small_request, tmp_path) -> None:
    results, histories = [], []
    for _ in range(2):
        loaded = load(folder)
        resumed = replace(context(loaded), checkpoint=tmp_path / "checkpoint", resume=True)
        histories.append(method("llmeraser", {"rounds": 2, "factors": [10, 100]})(loaded, small_request, resumed))
        results.append(theta(loaded))
    assert off(results[1], results[0]) < 1e-6
    assert histories[0].log == histories[1].log  # to the second: nothing was solved again


def test_the_report_tells_of_the_solve(folder, request_files, tmp_path) -> None:
    settings = {"factors": [10, 100]}
    results = unlearn(folder, *request_files, out=tmp_path / "run", method="llmeraser", settings=settings, limit=2)
    page = (tmp_path / "run" / "report.html").read_text()
    assert results["runs"][-1]["solve"]["rounds"][0]["candidates"][0]["factor"] == 100
    assert "How the update was solved for" in page
    assert "of 10 instances were taken out or changed by one linear system in 224 unknowns" in page
