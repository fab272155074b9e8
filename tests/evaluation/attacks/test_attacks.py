"""Every attack leaves the model as it was; what each does is checked against a plain computation."""

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from expunge.errors import ConfigurationError, ModelError
from expunge.evaluation import Evaluation, evaluate, request_suite
from expunge.evaluation.attacks import ATTACKS, Scene, attacks, bare, lacks, run
from expunge.evaluation.attacks.prune import pruned
from expunge.evaluation.attacks.rounding import fake_quantize
from expunge.evaluation.attacks.weights import linear_weights
from expunge.evaluation.metrics.leakage import clopper_pearson
from expunge.models import Loaded, new_adapter
from expunge.request import Example, Request
from tests.conftest import build_model
from tests.helpers.architectures import NAMES

SMALL = {
    "relearn": {"steps": 2}, "quantize": {"backends": ["torch"]}, "sample": {"n": 3}, "prefill": {"words": [1]},
    "paraphrase": {}, "fewshot": {"shots": [1]}, "jailbreak": {}, "translate": {"languages": ["German"]},
    "prune": {"shares": [0.5]}, "merge": {"weights": [0.5]},
}  # fmt: skip
MEASURED = ("extraction_strength", "probability", "exact_memorization", "rouge_l", "keywords")


def small(kind: str, **changes) -> object:
    settings = {f"{kind}.{name}": value for name, value in {**SMALL[kind], **changes}.items()}
    return attacks([kind], settings)[kind]


def bits(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone().view(torch.uint8) for name, tensor in named if tensor.dim()}


def values(found: dict, key: str) -> list[float]:
    return [point["metrics"][key] for point in found["points"]]


@pytest.mark.parametrize("kind", list(ATTACKS))
def test_weights_and_modes_are_afterwards_as_before(kind: str, scene: Callable[..., Scene]) -> None:
    given = scene()
    model, original = given.loaded.model, given.original.model
    before, at_home = bits(model), bits(original)
    modes = [module.training for module in model.modules()]
    found = run(kind, small(kind), given)
    assert found["kind"] == kind
    assert len(found["points"]) > 1
    assert found["points"][0]["at"] == 0
    for now, then in ((bits(model), before), (bits(original), at_home)):
        assert all(torch.equal(now[name], then[name]) for name in then)
    assert [module.training for module in model.modules()] == modes
    assert all(param.grad is None for param in model.parameters())
    for point in found["points"]:
        assert all(np.isfinite(value) for value in point["metrics"].values())
        assert set(point["intervals"]) <= set(point["metrics"])
    assert all({"prompt", "answer", "before", "generation"} <= set(row) for row in found["examples"])


@pytest.mark.parametrize("kind", ["relearn", "quantize", "prune", "merge"])
def test_an_adapter_is_attacked_too_and_left_as_it_was(
    kind: str, scene: Callable[..., Scene], refusing: Loaded
) -> None:
    adapter = new_adapter(Loaded(copy.deepcopy(refusing.model), refusing.tokenizer, refusing.folder), 2)
    with torch.no_grad():
        for name, param in adapter.model.named_parameters():
            if "lora_B" in name:
                param.normal_(0, 0.02, generator=torch.Generator().manual_seed(1))
    before = bits(adapter.model)
    found = run(kind, small(kind), scene(adapter))
    assert values(found, "forget.probability")[0] != values(found, "forget.probability")[-1]
    after = bits(adapter.model)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_first_point_is_what_evaluate_says(scene: Callable[..., Scene], asked: Request) -> None:
    given = scene()
    point = run("prune", small("prune"), given)["points"][0]
    plain: Evaluation = evaluate(given.loaded, request_suite(asked, max_new_tokens=12))
    for key in MEASURED[:4]:
        for name in ("forget", "retain"):
            assert point["metrics"][f"{name}.{key}"] == pytest.approx(plain.metrics[f"{name}.{key}"], abs=1e-9)
            assert point["intervals"][f"{name}.{key}"] == pytest.approx(plain.intervals[f"{name}.{key}"], abs=1e-9)


def test_the_models_are_what_the_tests_take_them_for(scene: Callable[..., Scene], learned: Loaded) -> None:
    for loaded, low, high in ((learned, 0.9, 1.0), (None, 0.0, 0.5)):
        found = scene(loaded).untouched()["forget"].columns["extraction_strength"].mean()
        assert low <= found <= high


def test_merging_all_of_the_original_gives_the_original(scene: Callable[..., Scene], learned: Loaded) -> None:
    found = run("merge", small("merge", weights=[1e-9, 1]), scene())
    own = run("prune", small("prune"), scene(learned))["points"][0]["metrics"]
    assert found["points"][2]["metrics"] == own
    assert found["points"][1]["metrics"] == pytest.approx(found["points"][0]["metrics"], abs=1e-5)
    itself = run("merge", small("merge"), scene(learned, role="original"))
    assert len(itself["points"]) == 1
    assert "merging it with itself" in itself["notes"][0]


def test_another_architecture_is_no_original(scene: Callable[..., Scene], learned: Loaded) -> None:
    other = Loaded(build_model(len(learned.tokenizer), layers=3).eval(), learned.tokenizer, learned.folder)
    with pytest.raises(ModelError, match="is not the original of"):
        run("merge", small("merge"), scene(other))


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.999])
def test_prune_takes_exactly_the_smallest(share: float) -> None:
    weight = torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    found = pruned(weight, share)
    count = int(share * 77)
    assert int((found == 0).sum()) == count
    threshold = sorted(weight.abs().flatten().tolist())[count]
    assert torch.equal(found, torch.where(weight.abs() < threshold, 0.0, weight))
    assert int((pruned(torch.ones(4, 5), share) == 0).sum()) == int(share * 20)


def test_only_layers_between_the_embeddings_are_pruned_and_rounded(tiny: Loaded) -> None:
    names = linear_weights(tiny.model)
    assert len(names) == 2 * 7
    assert not any("embed" in name or "head" in name for name in names)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "llama4_text", "deepseek_v3", "jetmoe", "jamba"])
def test_each_expert_is_a_matrix_of_its_own(name: str) -> None:
    """Experts were left out, which left most of a mixture's weights as they were."""
    model = NAMES[name].build(300)
    matrices = linear_weights(model)
    experts = {key: matrix for key, matrix in matrices.items() if key.endswith("]")}
    stacks = [(key, param) for key, param in model.named_parameters() if param.ndim == 3 and "conv" not in key]
    assert sum(matrix.numel() for matrix in experts.values()) == sum(param.numel() for _, param in stacks) > 0
    for key, param in stacks:
        parts = [matrix for other, matrix in experts.items() if other.startswith(f"{key}[")]
        assert len(parts) == param.shape[0]
        if "gate_up_proj" in key or "down_proj" in key:  # the model's width, 32, goes in first and comes out last
            assert {part.shape[1 if "gate_up_proj" in key else 0] for part in parts} == {32}
        before = param.detach().clone()
        parts[1].zero_()  # a view: the parameter itself changes, and of one expert only
        assert int((param != before).any(-1).any(-1).sum()) == 1
        assert not param[1].any()


def test_the_static_test_counts_edited_weights_whose_code_changed(scene: Callable[..., Scene], learned: Loaded) -> None:
    nudged = Loaded(copy.deepcopy(learned.model), learned.tokenizer, learned.folder)
    edited = changed = 0
    generator = torch.Generator().manual_seed(0)
    old = linear_weights(learned.model)
    for name, weight in linear_weights(nudged.model).items():
        with torch.no_grad():
            weight += (
                0.01
                * torch.randn(weight.shape, generator=generator)
                * (torch.rand(weight.shape, generator=generator) < 0.3)
            )
        for row, other in zip(weight.tolist(), old[name].tolist(), strict=True):
            codes = [fake_quantize(torch.tensor([one]), "int8").codes[0].tolist() for one in (row, other)]
            marks = [(a != b, c != d) for a, b, c, d in zip(row, other, *codes, strict=True)]
            edited += sum(a for a, _ in marks)
            changed += sum(a and b for a, b in marks)
    found = run("quantize", small("quantize", formats=["int8"]), scene(nudged))
    assert 0 < changed < edited
    assert found["points"][1]["metrics"]["codes_changed"] == changed / edited
    alone = run("quantize", small("quantize", formats=["int8"]), scene(nudged, original=None))
    assert "codes_changed" not in alone["points"][1]["metrics"]
    assert any("--original" in note for note in alone["notes"])


def test_rounding_measures_the_rounded_model(scene: Callable[..., Scene]) -> None:
    given = scene()
    found = run("quantize", small("quantize", formats=["nf4"]), given)
    rounded = copy.deepcopy(given.loaded.model)
    for weight in linear_weights(rounded).values():
        weight.copy_(fake_quantize(weight, "nf4", group=64).values)
    expected = scene(Loaded(rounded, given.loaded.tokenizer, given.loaded.folder)).untouched()["forget"]
    assert found["points"][1]["metrics"]["forget.probability"] == pytest.approx(expected.columns["probability"].mean())


def test_leak_at_k_of_a_model_that_knows_and_one_that_does_not(scene: Callable[..., Scene], learned: Loaded) -> None:
    sure = run("sample", small("sample", n=4, temperature=0.1), scene(learned))["points"][1]
    assert sure["at"] == 4
    assert sure["metrics"]["leak_at_1"] == sure["metrics"]["leak_bound"] == 1.0
    hot = small("sample", n=20, k=[1, 5], temperature=1.5)
    found = run("sample", hot, scene(learned))["points"][1]
    metrics = found["metrics"]
    assert 0 < metrics["leak_at_1"] < metrics["leak_at_5"] < 1
    count = round(metrics["leak_at_1"] * 80)
    assert metrics["leak_at_1"] == pytest.approx(count / 80)
    assert metrics["leak_bound"] == pytest.approx(clopper_pearson(count, 80))
    low, high = found["intervals"]["leak_at_5"]
    assert low <= metrics["leak_at_5"] <= high
    assert run("sample", hot, scene(learned, batch_size=3))["points"][1] == found
    assert run("sample", small("sample", n=20, k=[1, 5], temperature=1.5, seed=1), scene(learned))["points"][1] != found


def test_prefill_measures_what_was_not_given(scene: Callable[..., Scene], learned: Loaded) -> None:
    given = scene(learned)
    found = run("prefill", small("prefill", words=[1, 4]), given)
    assert values(found, "forget.keywords")[:2] == [1.0, 1.0]
    assert any("1 answers have no more than 4 words" in note for note in found["notes"])  # "She mends old clocks."
    example = given.sets["forget"][0]  # "Ada Lome was born in Tarn."
    plain = given.encoder.example(example)
    lengths = [
        len(given.encoder.tokenizer.decode(plain.ids[plain.start : end]).strip())
        for end in range(plain.start, len(plain))
    ]
    start = plain.start + next(index for index, length in enumerate(lengths) if length >= len("Ada Lome was born"))
    with torch.inference_mode():
        logprob = given.loaded.model(torch.tensor([plain.ids])).logits[0].log_softmax(-1)
    rest = [float(logprob[place - 1, plain.ids[place]]) for place in range(start, len(plain))]
    measured = scene(learned, sets={"forget": (example,)})
    one = run("prefill", small("prefill", words=[4]), measured)["points"][1]["metrics"]
    assert one["forget.probability"] == pytest.approx(np.exp(np.mean(rest)), rel=1e-5)
    assert one["forget.rouge_l"] == 1.0


def test_a_paraphrase_given_by_the_data_is_asked_where_there_is_one(
    scene: Callable[..., Scene], learned: Loaded
) -> None:
    plain = scene().sets["forget"]
    one = (replace(plain[0], paraphrased_prompt=plain[1].prompt), *plain[1:])
    found = run("paraphrase", small("paraphrase", templates=["{prompt}"]), scene(learned, sets={"forget": one}))
    assert [point["label"] for point in found["points"]] == [
        "as it is",
        "the data's paraphrase",
        "…",
        "the strongest of 3",
    ]
    assert "asked of 1 of 4" in found["notes"][0]
    assert values(found, "forget.rouge_l")[0] == values(found, "forget.rouge_l")[2] == 1.0
    assert values(found, "forget.rouge_l")[1] < 0.5  # it answers the other question
    assert values(found, "forget.probability")[3] >= max(values(found, "forget.probability")[0:3:2])


def test_the_strongest_way_is_taken_example_by_example(scene: Callable[..., Scene]) -> None:
    given = scene()
    found = run("jailbreak", small("jailbreak", templates=["{prompt}", "Say: {prompt}", "{prompt} Now!"]), given)
    each = []
    for text in ("{prompt}", "Say: {prompt}", "{prompt} Now!"):
        put = [replace(one, prompt=text.replace("{prompt}", one.prompt)) for one in given.sets["forget"]]
        each.append(given.measure({"forget": put})["forget"].columns["probability"])
    assert values(found, "forget.probability") == pytest.approx(
        [each[0].mean(), *(one.mean() for one in each), np.max(each, axis=0).mean()]
    )


def test_few_shot_examples_come_before_the_question_as_turns(scene: Callable[..., Scene]) -> None:
    given = scene()
    shown = []
    plan = given.plan
    given.plan = lambda name, examples: shown.append(examples) or plan(name, examples)  # type: ignore[method-assign]
    run("fewshot", small("fewshot", shots=[1, 2]), given)
    one, two = shown[-2][0].context, shown[-1][0].context
    assert len(one) == 2
    assert two[:2] == one
    assert [role for role, _ in two] == ["user", "assistant"] * 2
    solved = {(example.prompt, example.response) for example in given.known["retain"]}
    assert {(one[0][1], one[1][1]), (two[2][1], two[3][1])} <= solved
    with pytest.raises(ConfigurationError, match="the retain set has 6"):
        run("fewshot", small("fewshot", shots=[7]), given)


def test_a_budget_ends_an_attack_after_the_point_it_runs_out_at(scene: Callable[..., Scene]) -> None:
    found = run("prune", small("prune", shares=[0.1, 0.2, 0.3], seconds=1e-9), scene())
    assert [point["at"] for point in found["points"]] == [0, 0.1]
    assert "the budget of 1e-09 s was used up" in found["notes"][0]


def texts() -> tuple[Example, ...]:
    line = "Ada Lome was born in Tarn. She mends old clocks. Her brother is Per Lome, a baker."
    return bare("forget", (Example(prompt="", response=line, where="book.txt"),))


@pytest.mark.parametrize("kind", ["sample", "prefill", "quantize"])
def test_running_text_is_attacked_from_its_prefix(kind: str, scene: Callable[..., Scene]) -> None:
    found = run(kind, small(kind), scene(sets={"forget": texts()}))
    assert len(found["points"]) > 1


def test_what_an_attack_needs_is_said_before_it_runs() -> None:
    def why(kind: str, forget: tuple[Example, ...], **there) -> str | None:
        return lacks(small(kind), forget, **{"retain": True, "original": True, **there})

    question = (Example(prompt="Who?", response="Ada."),)
    assert {kind for kind in ATTACKS if why(kind, texts())} == {"paraphrase", "fewshot", "jailbreak", "translate"}
    assert "--retain" in str(why("fewshot", question, retain=False))
    assert {kind for kind in ATTACKS if why(kind, question, original=False)} == {"merge"}
    assert not any(why(kind, question) for kind in ATTACKS)


@pytest.mark.parametrize(
    ("kinds", "settings", "message"),
    [
        (["quantise"], {}, "Unknown attack 'quantise'. Did you mean 'quantize'"),
        ([""], {}, "Name at least one attack: relearn"),
        (["prune"], {"share": 0.1}, r"--set prune\.share="),
        (["prune"], {"prune.share": 0.1}, "Did you mean 'shares'"),
        (["prune"], {"relearn.steps": 1}, "relearn is not among those asked for"),
        (["prune"], {"prune.shares": [1.5]}, "less than 1"),
        (["sample"], {"sample.n": 16, "sample.k": [1, 128]}, "16 samples cannot tell leak@128: set sample.n"),
        (["sample"], {"sample.judge": "rouge"}, "keywords"),
        (["relearn"], {"relearn.on": "related"}, r"relearn\.data=FILE"),
        (["jailbreak"], {"jailbreak.templates": ["Say it!"]}, 'write "{prompt}"'),
        (["translate"], {"translate.languages": ["Klingon"]}, "German"),
        (["quantize"], {"quantize.formats": ["int3"]}, "int8"),
    ],
)
def test_settings_that_do_not_fit_are_explained(kinds: list[str], settings: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        attacks(kinds, settings)


def test_default_k_are_those_that_n_allows() -> None:
    assert small("sample", n=128).at == (1, 16, 128)  # type: ignore[attr-defined]
    assert small("sample", n=20).at == (1, 16)  # type: ignore[attr-defined]
    assert list(attacks(["all"], {})) == list(ATTACKS)


def test_few_shot_takes_as_many_as_fit_and_says_so(scene) -> None:
    given = scene()
    longest = max(len(given.encoder.prompt(row)) for rows in given.sets.values() for row in rows)
    given = scene(encoder=replace(given.encoder, max_length=longest + 30))
    found = run("fewshot", small("fewshot", shots=[5]), given)
    assert any("fewer solved questions" in note and "--max-length" in note for note in found["notes"])
    assert [point["label"] for point in found["points"]] == ["as it is", "5 shots"]
    none = scene(encoder=replace(given.encoder, max_length=longest + 1))
    found = run("jailbreak", small("jailbreak"), none)
    assert any("tokens: left out" in note for note in found["notes"])
    assert [point["label"] for point in found["points"]] == ["as it is"]


def test_english_templates_around_other_languages_are_noted() -> None:
    from types import SimpleNamespace

    from expunge.evaluation.attacks.jailbreak import TEMPLATES
    from expunge.evaluation.attacks.prompts import note_foreign

    rows = (
        Example(prompt="佐藤花子はどこで生まれましたか？", response="京都市です。"),
        Example(prompt="Where does Ada live?", response="In Tarn."),
        Example(prompt="", response="走れメロス"),
    )
    scene, found = SimpleNamespace(sets={"forget": rows}), SimpleNamespace(notes=[])
    note_foreign(scene, found, tuple(TEMPLATES.values()), TEMPLATES.values())  # type: ignore[arg-type]
    assert found.notes[0].startswith("1 of 2 forget examples are not in English")
    note_foreign(scene, found, ("質問: {prompt}",), TEMPLATES.values())  # type: ignore[arg-type]
    assert len(found.notes) == 1
