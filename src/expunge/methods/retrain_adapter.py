"""Retraining an adapter on what it may know: exact, and as costly as training it was."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

from expunge import config
from expunge.data.edited import Edited, check_known
from expunge.errors import ConfigurationError
from expunge.methods.contract import Context
from expunge.models import Loaded
from expunge.models.adapters import no_adapter, restart
from expunge.reading import part, read_object
from expunge.request import Request
from expunge.training import Finetuning, History
from expunge.training.finetuning import Recipe


@dataclass(frozen=True, kw_only=True)
class RetrainAdapter(Recipe):
    """Θ = train(Θ_0, kept and corrected data): the gold standard that LLMEraser (arXiv 2412.00383) comes near to.

    Θ_0 is where a new adapter of the same configuration and `seed` begins, so that with the seed and the recipe the adapter
    was trained with, retraining begins where that did. Same request, same bits on the same machine.

    train: file the adapter was fine-tuned on; each forget example must be in it, and its rest is what stays. All other
    settings are those of `expunge finetune`: give the recipe the adapter was trained with. If its run.json stands beside
    the adapter's folder, each setting that differs is noted.

    Raises ConfigurationError without an adapter (LoRA, DoRA, IA3, prompt or prefix tuning), RequestError without the
    fine-tuning set.
    """

    train: str | tuple[str, ...] | None = None

    @property
    def recipe(self) -> Finetuning:
        """The settings as those of fine-tuning."""
        return Finetuning(**{field.name: getattr(self, field.name) for field in fields(Finetuning)})

    def check(self, request: Request, *, adapter: bool | None) -> None:
        """Raise for a full model, and without the fine-tuning set, before anything is loaded."""
        if adapter is False:
            raise no_adapter("retrain-adapter", "--model")
        check_known(request, self.train)

    def __call__(self, loaded: Loaded, request: Request, context: Context) -> History:
        """Train the adapter of `loaded.model` anew, in place."""
        edited = Edited.of(request, context.encoder, self.train, context.chunk_tokens)
        restart(loaded, self.seed, "retrain-adapter")
        history = self.recipe(
            loaded,
            edited.now,
            context.encoder,
            checkpoint=context.checkpoint,
            resume=context.resume,
            progress=context.progress,
            identity=context.identity,
        )
        others = differences(self.recipe, loaded.folder)
        if others:
            history.notes.append(f"the adapter was trained by another recipe: {', '.join(others)}")
        return history


def differences(recipe: Finetuning, folder: Path) -> list[str]:
    """In what `recipe` is not that of the fine-tuning run whose adapter is in `folder`; nothing where that is unknown."""
    record = folder.parent / "run.json"
    if not record.is_file():
        return []
    configuration = part(read_object(record, ConfigurationError), "configuration", dict, record, ConfigurationError)
    known = configuration.get("finetuning") or {}
    if not isinstance(known, dict):
        raise ConfigurationError(f"{record} is damaged: 'configuration.finetuning' is no dict.")
    own = json.loads(json.dumps(config.to_dict(recipe)))
    skipped = {"checkpoint_every"}
    return [
        f"{name} {known[name]}, now {value}"
        for name, value in own.items()
        if name in known and name not in skipped and known[name] != value
    ]
