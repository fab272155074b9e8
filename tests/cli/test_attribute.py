"""`expunge attribute` from end to end, and masks listed by `expunge methods`."""

import json
import sys

import pytest
from safetensors.torch import load_file

from expunge.attribution.insight import overlap
from expunge.cli import main
from expunge.models import load
from expunge.models.mask import Mask


@pytest.fixture
def run(monkeypatch, capsys):
    """Call `expunge ARGS`: the exit code, standard output and standard error."""

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["expunge", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return caught.value.code or 0, captured.out, captured.err  # type: ignore[return-value]

    return call


@pytest.fixture
def attribute(run, tiny_folder, request_files):
    def call(out, *more) -> tuple[int, str, str]:
        forget, retain = request_files
        base = ["attribute", "--model", tiny_folder, "--forget", forget, "--retain", retain, "--out", out, "--quiet"]
        return run(*base, *more)

    return call


def test_a_mask_is_written_and_compared(attribute, tiny_folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # the table follows the window's width
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert attribute(first, "--method", "snip", "--ratio", ".6")[0] == 0
    arguments = ["--ratio", ".9", "--set", "gamma=.01", "--loss", "npo", "--set", "loss.beta=.5", "--compare", first]
    code, printed, _ = attribute(second, *arguments)
    assert code == 0
    mask = Mask.open(second)
    mask.check(load(tiny_folder))
    kept = round(0.9 * mask.entries)
    assert sum(mask.kept.values()) == kept
    assert f"{kept:,} of {mask.entries:,} weights may change (90.00%)" in printed
    assert mask.info["attribution"] == "Wagle"
    assert mask.info["gamma"] == 0.01
    assert mask.info["settings"]["reduction"] == "mean"
    assert mask.info["forget_loss"] == "NPO(beta=0.5, reduction='sum')"
    assert set(mask.info["data"]) == {"forget", "retain"}
    rows = overlap(mask, Mask.open(first))
    assert mask.info["insight"]["overlap"] == [{"with": str(first), **row} for row in rows]
    assert f"(Jaccard): {rows[0]['jaccard']:.3f}, by chance {rows[0]['expected']:.3f}" in printed

    lines = {words[0]: words[1:] for line in printed.splitlines() if (words := line.split())}
    up = "model.layers.1.mlp.up_proj.weight"
    assert lines["1"][lines["layer"].index("up_proj")] == f"{100 * mask[up].float().mean():.1f}"
    assert lines["whole"] == ["90.0"]
    assert lines["embed_tokens"] == [f"{100 * mask['model.embed_tokens.weight'].float().mean():.1f}"]


def test_unlearning_with_a_mask_file_changes_its_weights_only(
    attribute, run, tiny_folder, request_files, tmp_path
) -> None:
    out, done = tmp_path / "mask.safetensors", tmp_path / "run"
    assert attribute(out, "--ratio", ".3")[0] == 0
    forget, retain = request_files
    base = ["unlearn", "--model", tiny_folder, "--forget", forget, "--retain", retain, "--out", done, "--quiet"]
    settings = ["--method", "npo", "--mask", out, "--no-evaluate", "--set", "steps=2", "--set", "lr=1e-3"]
    assert run(*base, *settings)[0] == 0
    mask, before, after = Mask.open(out), load(tiny_folder).model.state_dict(), load(done).model.state_dict()
    changed = sum(int((before[name] != after[name]).sum()) for name in mask.shapes)
    assert changed > 0.5 * sum(mask.kept.values())
    for name in mask.shapes:
        assert not (before[name] != after[name])[~mask[name]].any()


def test_soft_weights_are_plain_tensors_by_parameter_name(attribute, tiny_folder, tmp_path) -> None:
    out = tmp_path / "weights.safetensors"
    code, printed, _ = attribute(out, "--method", "perta", "--set", "p=2", "--json")
    assert code == 0
    shown = json.loads(printed)
    assert shown["kind"] == "mean weight"
    assert sum(shown["histogram"]["counts"]) == Mask.open(out).entries
    weights = load_file(out)
    wanted = {name: param.shape for name, param in load(tiny_folder).model.named_parameters()}
    assert {name: weight.shape for name, weight in weights.items()} == wanted
    assert all(float(weight.min()) >= 0 and float(weight.max()) <= 1 for weight in weights.values())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--ratio", "1.5"], "wagle.ratio"),
        (["--set", "gamma=-1"], "wagle.gamma"),
        (["--method", "wagel"], "Did you mean 'wagle'"),
        (["--method", "file"], "expunge unlearn --mask FILE"),
        (["--loss", "npoo"], "Did you mean 'npo'"),
        (["--loss", "kl"], "its gradient is 0"),
        (["--compare", __file__], "is no safetensors file"),
        (["--set", "exclude=*"], "nothing to rank"),
        (["--set", "exclude=['*norm*', '*nowhere*']"], "'*nowhere*' fits no parameter"),
        (["--method", "perta", "--set", "soft=true", "--set", "exclude=*nowhere*"], "'*nowhere*' fits no parameter"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_written(attribute, tmp_path, more, words) -> None:
    code, _, said = attribute(tmp_path / "mask.safetensors", *more)
    assert code == 2
    assert words in said
    assert not list(tmp_path.iterdir())


def test_masks_that_cannot_be_compared_are_refused_first(attribute, tmp_path) -> None:
    soft, adapter = tmp_path / "soft.safetensors", tmp_path / "adapter.safetensors"
    assert attribute(soft, "--method", "perta")[0] == 0
    assert attribute(adapter, "--method", "random", "--lora", 2)[0] == 0
    for other, words in ((soft, "is a soft mask"), (adapter, "is a mask for another model")):
        code, _, said = attribute(tmp_path / "mask.safetensors", "--compare", other)
        assert (code, words in said) == (2, True)


def test_an_existing_mask_is_kept(attribute, tmp_path) -> None:
    out = tmp_path / "mask.safetensors"
    assert attribute(out, "--method", "random")[0] == 0
    before = out.read_bytes()
    code, _, said = attribute(out, "--method", "magnitude")
    assert (code, "exists already" in said) == (2, True)
    assert out.read_bytes() == before
    assert attribute(out, "--method", "magnitude", "--overwrite")[0] == 0


def test_retain_is_needed_where_it_is_weighed(run, tiny_folder, request_files, tmp_path) -> None:
    base = ["attribute", "--model", tiny_folder, "--forget", request_files[0], "--out", tmp_path / "mask", "--quiet"]
    code, _, said = run(*base)
    assert (code, "give --retain" in said) == (2, True)
    assert run(*base, "--method", "salun")[0] == 0


def test_masks_are_listed_beside_the_methods(run) -> None:
    listed = run("methods")[1]
    assert "mask " in listed
    assert "salun" in listed
    shown = run("methods", "wagle")[1]
    assert "arXiv 2410.17509" in shown.replace("\n", " ")
    assert "retain_examples" in shown
    both = run("methods", "perta")[1]
    assert "As a mask" in both
    assert json.loads(run("methods", "--json")[1])["masks"]["wagle"]["settings"]["gamma"] == "tofu"
