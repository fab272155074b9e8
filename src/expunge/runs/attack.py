"""`expunge attack`: try to draw the forgotten content out again, of one model and its controls, with the same seeds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from expunge.config import canonical
from expunge.data import Wording
from expunge.errors import ConfigurationError, ExpungeError
from expunge.evaluation import tuned
from expunge.evaluation.attacks import Scene, attacks, bare, lacks, run
from expunge.evaluation.attacks.scene import summarise
from expunge.evaluation.conditions import Conditions
from expunge.evaluation.suites import Suite
from expunge.files import write_json
from expunge.models import Loaded, load
from expunge.models.fingerprint import fingerprint, is_of
from expunge.models.folders import resolve
from expunge.reporting import read_results, write_report
from expunge.request import Paths
from expunge.runs.checks import check_models
from expunge.runs.output import Arguments, Output, writes
from expunge.runs.record import Listener, results_of


def _where(asked: Arguments) -> Output:
    out, add_to = asked["out"], asked["add_to"]
    if (out is None) == (add_to is None):
        raise ConfigurationError("Give --out, a place for new results, or --add-to, the results the attacks belong to.")
    target, page = _targets(out if out is not None else add_to)
    return Output(target, (page, page.with_suffix(".md")) if asked["report"] else (), update=add_to is not None)


@writes("model", "original", "reference", "tuned_on", "read", folder=False, where=_where)
def attack(
    model: Path | str,
    suite: Suite,
    kinds: Sequence[str],
    *,
    out: Path | str | None = None,
    add_to: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    known: Mapping[str, Sequence[Any]] | None = None,
    method: str | None = None,
    seed: int | None = None,
    original: Path | str | None = None,
    reference: Path | str | None = None,
    tuned_on: Paths | None = None,
    leave_out_tuned: bool = False,
    read: Sequence[Paths] = (),
    report: bool = True,
    max_length: int = 512,
    wording: Wording = Wording(),
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32",
    device: str | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Run attacks of these kinds ("all": every one that can be) on `model`, and on its controls where given.

    suite: its sets "forget" and "retain" are measured. settings: "<kind>.<setting>": value. known: the whole sets by name,
    where the suite's are a part of them (with `limit`): what relearning trains on and few-shot examples are drawn from.
    out: the results.json to write, or a folder for it; the report goes beside it. add_to: the results.json of an
    evaluation to which the attacks are added instead, to the runs of the same role and, of unlearned ones, the same
    `method` (and `seed`, where several have it); an attack of the same kind and settings takes the place of an earlier one.

    tuned_on, leave_out_tuned, read: as in `evaluate_model`; what `add_to` says it was tuned on counts too.

    Raises ConfigurationError for an unknown kind, attacks that cannot be run on this, and results without the run or of
    other weights; nothing is written then.
    """
    target, page = _targets(out if out is not None else add_to or "")
    if "forget" not in suite.sets:
        raise ConfigurationError(
            f"The suite {suite.name} has no forget set of examples, which attacks need: try request."
        )
    listener = listener or Listener()
    roles = {"original": original, "retrained": reference, "unlearned": model}
    places = {role: folder for role, folder in roles.items() if folder is not None}
    _check_places(places)
    check_models(**places)
    standing = read_results(target) if add_to is not None else None
    marks = _marks(model, tuned_on, standing)
    suite = tuned.apart(suite, marks, leave_out=leave_out_tuned)
    runs = _runs(standing, places, method, seed, target)
    prints = _fingerprints(places, standing, target)
    sets = {name: bare(name, suite.sets[name]) for name in ("forget", "retain") if name in suite.sets}
    whole = {name: bare(name, (known or {}).get(name) or examples) for name, examples in sets.items()}
    chosen = _possible(kinds, settings or {}, sets, original is not None, listener)
    loading: dict[str, Any] = {
        "dtype": dtype,
        "device": device,
        "trust_remote_code": trust_remote_code,
        "wording": wording,
    }
    first: Loaded | None = None
    failed: ExpungeError | None = None
    for role, folder in places.items():
        found: list[dict[str, Any]] = []
        scene: Scene | None = None
        try:
            listener.stage(f"loading the {role} model")
            loaded = load(folder, **loading, note=listener.note)
            first = loaded if role == "original" else first
            scene = Scene(
                loaded=loaded,
                role=role,
                sets=sets,
                known=whole,
                encoder=loaded.encoder(max_length),
                original=first,
                max_new_tokens=_new_tokens(max_new_tokens, suite, runs[role]),
                prefix_tokens=suite.prefix_tokens,
                batch_size=batch_size,
                progress=listener.batch,
                step=listener.step,
            )
            _check_alike(runs[role], scene, target)
            if (note := scene.encoder.note(sets["forget"])) and role == next(iter(places)):
                listener.note(note)
            for kind, one in chosen.items():
                listener.stage(f"{kind} on the {role} model")
                found.append(run(kind, one, scene))
                for note in found[-1]["notes"]:
                    listener.note(note)
        except ExpungeError as error:  # what is finished is worth keeping
            failed = error
        if scene is not None and found:
            _put(runs[role], found, scene, suite.notes)
        if failed is not None:
            break
    attacked = [entry for entry in runs.values() if "metrics" in entry and entry.get("attacks")]
    if failed is not None and not attacked:
        raise failed
    more = {"models": {role: str(place) for role, place in places.items()}, "hashes": {"models": prints}}
    more |= {"tuned_on": sorted(marks)} if marks else {}
    results = standing or results_of(f"Attacks on {suite.name}", suite.name, attacked, **more)
    write_json(target, results)
    if report:
        write_report(results, page)
    if failed is not None:
        listener.note(f"the attacks that were finished before are kept in {target}")
        raise failed
    return results


def _targets(out: Path | str) -> tuple[Path, Path]:
    """The files of the results and of their report: beside a results file of any name, or with fixed names in a folder."""
    out = Path(out)
    target = out if out.suffix == ".json" else out / "results.json"
    page = target.with_name("report.html")
    return target, page if out.suffix != ".json" or page.is_file() else target.with_suffix(".html")


def _marks(model: Path | str, tuned_on: Paths | None, standing: Mapping[str, Any] | None) -> frozenset[str]:
    """The marks of the examples settings were chosen on: by the model's own run, by what is given, by the results."""
    given = tuned.read_marks(tuned_on) if tuned_on is not None else frozenset()
    return tuned.beside(resolve(model)) | given | (tuned.marks_in(standing) if standing else frozenset())


def _fingerprints(places: Mapping[str, Path | str], standing: Mapping[str, Any] | None, target: Path) -> dict[str, str]:
    """The hash of each model's weights. Raises ConfigurationError if the results name hashes and these are others."""
    folders = {role: resolve(place) for role, place in places.items()}
    found = {role: fingerprint(folder) for role, folder in folders.items() if folder.is_dir()}
    known = ((standing or {}).get("hashes") or {}).get("models") or {}
    for role, value in found.items():
        if known and not any(is_of(each, folders[role]) for each in known.values()):
            raise ConfigurationError(
                f"{target} is of other models: the {role} model's weights in {places[role]} ({value[:12]}…) are none of "
                "those it was measured on. Give the same model, or write to a place of its own with --out."
            )
    return found


def _check_places(places: Mapping[str, Path | str]) -> None:
    for role, folder in places.items():
        if str(folder).endswith(".json"):
            raise ConfigurationError(
                f"{folder} is a file of results, and an attack has to run the {role} model itself: give its folder."
            )


def _possible(
    kinds: Sequence[str],
    settings: Mapping[str, Any],
    sets: Mapping[str, Sequence[Any]],
    original: bool,
    listener: Listener,
) -> dict[str, Any]:
    """The attacks that can be run; of `all`, those that cannot are named and left out."""
    chosen = attacks(kinds, settings)
    whys = {
        kind: lacks(one, sets["forget"], retain="retain" in sets, original=original) for kind, one in chosen.items()
    }
    for kind, why in whys.items():
        if why and "all" in map(canonical, kinds):
            listener.note(f"{kind} is left out: it {why}")
        elif why:
            raise ConfigurationError(f"The attack {kind} {why}.")
    for kind, one in chosen.items():
        if kind == "relearn" and one.on == "retain" and "retain" not in sets:
            raise ConfigurationError("relearn.on = retain trains on the retain set: give --retain.")
    return {kind: one for kind, one in chosen.items() if not whys[kind]}


def _runs(
    standing: dict[str, Any] | None, places: Mapping[str, Any], method: str | None, seed: int | None, target: Path
) -> dict[str, dict[str, Any]]:
    """The entry of the results each role's attacks go to: new ones, or those of `standing` results."""
    if standing is None:
        return {role: {"method": method or role if role == "unlearned" else role, "model": role} for role in places}
    return {role: _match(standing["runs"], role, method, seed, target) for role in places}


def _match(
    runs: Sequence[dict[str, Any]], role: str, method: str | None, seed: int | None, target: Path
) -> dict[str, Any]:
    same = [run for run in runs if run["model"] == role]
    fits = [
        run
        for run in same
        if (role != "unlearned" or method is None or canonical(run["method"]) == canonical(method))
        and (seed is None or run.get("seed") is None or run["seed"] == seed)
    ]
    if len(fits) == 1:
        return fits[0]
    there = ", ".join(dict.fromkeys(f"{run.get('method') or role} (seed {run.get('seed')})" for run in same)) or "none"
    how = "several runs fit" if fits else "no run fits"
    raise ConfigurationError(
        f"{target}: {how} the {role} model; there are: {there}. Say which by --name METHOD and --run-seed SEED"
        + ("." if same else f", or leave the {role} model out.")
    )


def _new_tokens(number: int | None, suite: Suite, entry: Mapping[str, Any]) -> int:
    """The given number; else that of the results the attacks are added to; else the suite's."""
    known = Conditions.read(entry.get("conditions"))
    there = known.max_new_tokens if known else None
    return next(value for value in (number, there, suite.max_new_tokens) if value is not None)


def _check_alike(entry: Mapping[str, Any], scene: Scene, target: Path) -> None:
    """Raise ConfigurationError if the results that attacks are added to were measured otherwise than attacks would be."""
    known = Conditions.read(entry.get("conditions"), str(target))
    words = known.unlike(scene.conditions()) if known else []
    if words:
        raise ConfigurationError(
            f"{target} was measured otherwise than these attacks would be (there and here): {'; '.join(words)}. Give the "
            "same, or write to another place with --out."
        )


def _put(entry: dict[str, Any], found: Sequence[dict[str, Any]], scene: Scene, notes: Sequence[str]) -> None:
    """Add attacks to a run's entry in place of earlier ones of the same kind and settings."""
    if "metrics" not in entry:
        entry["metrics"], entry["intervals"] = summarise(scene.untouched())
        entry["conditions"] = scene.conditions().to_dict()
    said = [f"attacks: {note}" for note in notes]
    entry["notes"] = list(dict.fromkeys([*(entry.get("notes") or []), *said]))
    done = {_same(one) for one in found}
    entry["attacks"] = [one for one in entry.get("attacks") or [] if _same(one) not in done] + list(found)


def _same(one: Mapping[str, Any]) -> str:
    return json.dumps([one["kind"], one["settings"]], sort_keys=True, default=str)
