"""LLMEraser: against dense oracles and true retraining, on every kind of request and adapter; what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from expunge import patch
from expunge.data import Encoded, Encoder
from expunge.errors import DivergedError, RequestError
from expunge.gradients.damped import lowest
from expunge.gradients.iterate import Point
from expunge.gradients.solve import Solution, better_than_nothing
from expunge.methods import Context, llmeraser, method
from expunge.methods.descent import mean_nll
from expunge.models import Loaded, load
from expunge.models.saving import save_model
from expunge.request import Request
from expunge.runs import unlearn
from tests.oracles import slow
from tests.oracles.curvature import dense_gauss_newton, dense_hessian

FIXED = {"damping": 0.05, "tolerance": 1e-6, "subset": None}


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


def unsolved() -> Solution:
    return Solution(torch.zeros(1), 1.0, (Point(50.0, 1.0, 1.5),), 9, negative_curvature=False, stopped="passes")


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

    def failing(tried, *limits):
        calls.append(tried)
        if len(calls) == 2:
            assert not torch.equal(theta(adapter), before)
            raise MemoryError("as if")
        return lowest(tried, *limits)

    monkeypatch.setattr(llmeraser, "lowest", failing)
    with pytest.raises(MemoryError, match="as if"):
        method("llmeraser", {"rounds": 2, "factors": [100]})(adapter, small_request, context(adapter))
    assert torch.equal(theta(adapter), before)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"damping": 10.0, "curvature": "hessian", "rounds": 2}, "relative residual"),  # a later solve finds nothing
        ({"damping": 0.02, "rounds": 30}, "No λ tried lowers the loss"),
    ],
)
def test_a_later_round_that_would_not_help_is_left_out(folder, small_request, monkeypatch, settings, why) -> None:
    """What the rounds before it did stands, bit for bit."""
    if why == "relative residual":
        solve, calls = llmeraser.solved, []

        def failing(*parts, **more):
            calls.append(parts)
            return solve(*parts, **more) if len(calls) < 2 else better_than_nothing(unsolved())

        monkeypatch.setattr(llmeraser, "solved", failing)
    loaded = load(folder)
    history = method("llmeraser", {**FIXED, **settings})(loaded, small_request, context(loaded))
    done = len(history.found["solve"]["rounds"])
    assert 1 <= done < settings["rounds"]
    assert any(f"round {done + 1} of the solve was left out" in note and why in note for note in history.notes)
    monkeypatch.undo()
    fewer = load(folder)
    method("llmeraser", {**FIXED, **settings, "rounds": done})(fewer, small_request, context(fewer))
    assert torch.equal(theta(loaded), theta(fewer))


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


def test_running_text_in_the_training_file_is_cut_as_the_requests_is(folder, request_files, tmp_path) -> None:
    text = {"text": " ".join(json.loads(line)["response"] for line in request_files[0].read_text().splitlines())}
    forget = lines(tmp_path / "forget.jsonl", text)
    train = lines(tmp_path / "train.jsonl", text)
    train.write_text(train.read_text() + request_files[1].read_text())
    for name in ("llmeraser", "retrain-adapter"):
        settings = {"train": str(train)} | ({"factors": [300]} if name == "llmeraser" else {"steps": 1})
        options = {"method": name, "settings": settings, "chunk_tokens": 8, "evaluate_models": False}
        results = unlearn(folder, forget, out=tmp_path / name, **options)
        assert results["request"]["forget"] > 1  # chunks, each of them found in the training file


def test_a_request_over_two_fifths_is_warned_of(adapter, small_request) -> None:
    few = Request(small_request.forget, small_request.retain[:5])
    history = method("llmeraser", {"factors": [300]})(adapter, few, context(adapter))
    assert any("4 of 9 instances (44%)" in note and "retrain-adapter" in note for note in history.notes)
    assert history.found["solve"]["share"] == pytest.approx(4 / 9)


@pytest.mark.parametrize(("damping", "harm"), [(1e-6, True), (10.0, False)])
def test_an_update_that_does_harm_says_so(adapter, small_request, damping: float, harm: bool) -> None:
    history = method("llmeraser", {"damping": damping})(adapter, small_request, context(adapter))
    solve = history.found["solve"]
    assert (solve["loss_after"] > solve["loss_before"]) == harm
    assert any("has risen" in note and "retrain-adapter" in note for note in history.notes) == harm


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
