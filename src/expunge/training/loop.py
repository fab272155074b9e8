"""The step loop every descent runs: one plain loop on accelerate.

A step draws `batch_size · accumulation` examples of each side, takes the gradients of their mean losses, combines them,
and steps. Its examples go through the model in passes of like length, `batch_size` at most; gradients add up. Where the
combination needs the two gradients apart, each is accumulated over the whole step before anything is normalised; where its
weights are fixed, both sides share the passes and one gradient buffer. Started by torchrun or `accelerate launch`, each
process takes its share of every batch, and all see the same losses and gradients.

Weights, gradients and moments are fp32; `precision="bf16"` computes the forward and backward in bf16 by autocast, so the
update is always applied to fp32 master weights.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from expunge import interrupts
from expunge.data import collate, packs
from expunge.errors import ConfigurationError, DivergedError
from expunge.gradients import global_norm
from expunge.identity import Identity
from expunge.models import Loaded, answers
from expunge.models.mask import Mask
from expunge.training import checkpoint, optimizers
from expunge.training.combine import Combination, Measured
from expunge.training.history import History
from expunge.training.identity import training_identity
from expunge.training.masked import Masked
from expunge.training.rates import GeN, Rate
from expunge.training.sampling import Stream
from expunge.training.sides import ReferenceCache, Side

Progress = Callable[[dict[str, Any], int], None]
KINDS = ("loss", "nll")
LOSSES = tuple(f"{side}_{kind}" for side in ("forget", "retain") for kind in KINDS)
NORMS = ("forget_norm", "retain_norm")
# padded tokens a pass on a CPU: more only pads more (measured at 5 M parameters; larger ones need fewer)
CPU_TOKENS = 512


@dataclass(frozen=True)
class Plan:
    """Everything a descent's loop is told; see `methods.Descent` for what each setting means."""

    steps: int
    combine: Combination
    rate: Rate
    optimizer: str = "adamw"
    lr: float = 1e-5
    weight_decay: float = 0.0
    batch_size: int = 16
    accumulation: int = 1
    max_grad_norm: float | None = None
    precision: str = "fp32"
    seed: int = 0
    stop_forget_nll: float | None = None
    stop_retain_nll: float | None = None
    stop_retain_rise: float | None = None
    checkpoint_every: int = 0
    clip_before_mask: bool = False


def descend(
    loaded: Loaded,
    plan: Plan,
    *,
    forget: Side | None = None,
    retain: Side | None = None,
    mask: Mask | None = None,
    folder: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    identity: Identity = Identity(),
) -> History:
    """Train `loaded.model` in place on its trainable parameters. Either side may be absent.

    With `mask` the update is m ⊙ that of the optimizer, and what it freezes keeps its bits. `folder` is where
    checkpoints go (and where `resume` looks for one). Besides the weights, the examples, the plan and the mask, which are
    hashed here, `identity` names what must be the same for a run to go on.

    Raises ConfigurationError for a mask of other parameters or a checkpoint of another run, and DivergedError at the
    first loss or gradient that is not finite: the model then holds the weights of the last step whose losses were
    finite, or of the last checkpoint.
    """
    masked = Masked(loaded.model, mask, late=plan.clip_before_mask)
    with masked.halted(), interrupts.postponed():
        return _Loop(loaded, plan, forget, retain, folder, mask, masked, identity).run(resume, progress)


class _Loop:
    def __init__(
        self,
        loaded: Loaded,
        plan: Plan,
        forget: Side | None,
        retain: Side | None,
        folder: Path | None,
        mask: Mask | None,
        masked: Masked,
        identity: Identity,
    ) -> None:
        self.identity = identity
        self.plan, self.folder, self.pad, self.mask, self.masked = plan, folder, loaded.pad, mask, masked
        self.sides = {name: side for name, side in (("forget", forget), ("retain", retain)) if side is not None}
        if not plan.combine.fixed and len(self.sides) < 2:
            raise ConfigurationError(f"{type(plan.combine).__name__} needs a forget and a retain set; give both.")
        AcceleratorState._reset_state(reset_partial_state=False)
        self.bare = loaded.model
        on_cpu = next(iter(masked.seen.values())).device.type == "cpu"
        self.accelerator = Accelerator(mixed_precision="bf16" if plan.precision == "bf16" else "no", cpu=on_cpu)
        self.world, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        self.model = self._distributed() if self.world > 1 else self.bare
        if plan.batch_size < self.world:
            raise ConfigurationError(f"batch_size {plan.batch_size} is too small for {self.world} processes.")
        self.params = list(masked.measured.values())
        self.optimizer = optimizers.make(plan.optimizer, list(masked.seen.values()), plan.lr, plan.weight_decay)
        self.streams = {
            name: Stream(len(side.items), 2 * plan.seed + (name == "retain"), side.favoured)
            for name, side in self.sides.items()
        }
        self.repeatable = plan.precision == "fp32" and not has_dropout(self.bare)
        self.eta, self.first_step, self.history = plan.lr, 0, History()

    def _distributed(self) -> nn.Module:
        forward = self.bare.forward
        model = self.accelerator.prepare_model(self.bare)
        self.bare.forward = forward  # accelerate wraps it in autocast; the loop does that itself, where it is meant
        return model

    def run(self, resume: bool, progress: Progress | None) -> History:
        torch.manual_seed(self.plan.seed)
        if self.folder is not None:
            self.identity |= training_identity(self.bare, self.plan, self.sides, self.masked.digest)
        self._cache_references()
        if resume:
            self._resume()
        self.model.train()
        try:
            for step in range(self.first_step, self.plan.steps):
                started = time.perf_counter()
                entry = self._step(step)
                entry["seconds"] = time.perf_counter() - started
                self.history.log.append(entry)
                if progress:
                    progress(entry, self.plan.steps)
                if self.history.stopped:
                    break
                due = self.plan.checkpoint_every and (step + 1) % self.plan.checkpoint_every == 0
                if due or interrupts.requested():
                    self._save(step + 1)
                if interrupts.requested():
                    break
        finally:
            self.model.eval()
        skipped = [entry["step"] for entry in self.history.log if entry.get("skipped")]
        if skipped:
            self.history.notes.append(
                f"{len(skipped)} of {self.history.steps} steps were skipped, the first step {skipped[0]}: "
                "a gradient's norm was 0"
            )
        if not self.history.stopped:
            self.history.stopped = f"all {self.plan.steps} steps done"
        return self.history

    # One step

    def _step(self, step: int) -> dict[str, Any]:
        plan = self.plan
        chosen = {
            name: stream.batch(step, plan.batch_size * plan.accumulation) for name, stream in self.streams.items()
        }
        entry: dict[str, Any] = {"step": step}
        usable = (self._fused if plan.combine.fixed else self._separate)(chosen, entry)
        self._check_finite(entry, step)
        self.history.stopped = self._stop_reason(entry)
        if self.history.stopped or not usable:
            entry.update(lr=0.0, **({} if usable else {"skipped": True}))
            self.masked.clear()
            return entry
        if plan.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.params, plan.max_grad_norm)
        if self.masked.late:
            self.masked.gather()
        if isinstance(plan.rate, GeN) and step % plan.rate.every == 0:
            entry["probe"] = self._probe(step, chosen["retain"], entry["retain_loss"])
        entry["lr"] = self.eta * plan.rate.at(step, plan.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = entry["lr"]
        self.masked.step(self.optimizer)
        # fresh memory every step would cost more than filling the old with 0
        self.optimizer.zero_grad(set_to_none=False)
        return entry

    def _fused(self, chosen: dict[str, list[int]], entry: dict[str, Any]) -> bool:
        """Both sides in the same forward and backward passes; weighted gradients add up in place."""
        weights = dict(zip(("forget", "retain"), self.plan.combine.coefficients(None), strict=True))
        self._accumulate(chosen, weights, entry)
        entry["gradient_norm"] = global_norm([param.grad for param in self.params if param.grad is not None])
        return True

    def _separate(self, chosen: dict[str, list[int]], entry: dict[str, Any]) -> bool:
        """Each side's gradient accumulated whole, then combined; one extra gradient buffer."""
        gradients = {}
        for name, indices in chosen.items():
            self._accumulate({name: indices}, {name: 1.0}, entry)
            gradients[name] = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
            entry[f"{name}_norm"] = global_norm(gradients[name])
            self._lay_out([None] * len(self.params))
        seen = Measured(*(entry[key] for key in ("forget_loss", "retain_loss", "forget_norm", "retain_norm")))
        a, b = self.plan.combine.coefficients(seen)
        if not (math.isfinite(a) and math.isfinite(b)):
            return False
        torch._foreach_mul_(gradients["retain"], b)
        torch._foreach_add_(gradients["retain"], gradients["forget"], alpha=a)
        self._lay_out(gradients["retain"])
        return True

    def _lay_out(self, gradients: Sequence[Tensor | None]) -> None:
        """Let the parameters' gradients be these tensors."""
        for param, gradient in zip(self.params, gradients, strict=True):
            param.grad = gradient

    def _accumulate(self, chosen: dict[str, list[int]], weights: dict[str, float], entry: dict[str, Any]) -> None:
        """Add the gradient of the weighted mean losses to the parameters', and the losses to the step's entry."""
        totals = {name: len(indices) for name, indices in chosen.items()}
        seen = {f"{name}_{kind}": torch.zeros((), device=self.accelerator.device) for name in totals for kind in KINDS}
        passes = self._passes(chosen)
        for number, part in enumerate(passes, start=1):
            with nullcontext() if number == len(passes) else self.accelerator.no_sync(self.model):
                losses = self._forward(part, totals, seen)
                # Across processes the mean of the gradients is taken, hence the factor.
                self.accelerator.backward(self.world * sum(weights[name] * loss for name, loss in losses.items()))
        values = self.accelerator.reduce(torch.stack(list(seen.values())), "sum")
        entry.update(zip(seen, values.tolist(), strict=True))
        if not self.masked.late:
            self.masked.gather()

    def _passes(self, chosen: dict[str, list[int]]) -> list[dict[str, list[int]]]:
        """This process's share of the step's examples in passes, the longest first.

        Examples of like length stand together, so that little is padded; the sides mix where both are chosen. A pass
        holds at most `batch_size` examples, and on a CPU no more tokens than make it efficient.
        """
        mine = [(name, index) for name, indices in chosen.items() for index in indices[self.rank :: self.world]]
        lengths = [self.sides[name].length(index) for name, index in mine]
        room = CPU_TOKENS if self.accelerator.device.type == "cpu" else math.inf
        passes = [[mine[place] for place in part] for part in packs(lengths, self.plan.batch_size, room)]
        return [{name: [index for side, index in part if side == name] for name in dict(part)} for part in passes]

    def _forward(
        self, part: dict[str, list[int]], totals: dict[str, int], seen: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """This pass's share of each side's mean loss over the step; also added, with the NLL, to `seen`."""
        rows = {name: self.sides[name].encoded(indices) for name, indices in part.items()}
        batch = collate([row for side in rows.values() for row in side], self.pad).to(self.accelerator.device)
        with self.accelerator.autocast():
            got = answers(self.model, batch)
        losses: dict[str, Tensor] = {}
        for (name, indices), its in zip(part.items(), got.split(*map(len, rows.values())), strict=True):
            loss, nll = self.sides[name].values(its, indices)
            losses[name] = loss.sum() / totals[name]
            seen[f"{name}_loss"] += losses[name].detach()
            seen[f"{name}_nll"] += nll.sum() / totals[name]
        return losses

    # The automatic learning rate

    @torch.no_grad()
    def _probe(self, step: int, batch: Sequence[int], loss: float) -> dict[str, Any]:
        """Measure the retain loss along the step's direction and update η; the weights come back bit for bit.

        `loss`: the mean over the step's `batch`, which need not be computed again at θ itself where nothing was random.
        """
        rate = self.plan.rate
        assert isinstance(rate, GeN)
        others = (index for index in self.streams["retain"].batch(step + 1, rate.probe_size) if index not in set(batch))
        more = list(islice(others, max(0, rate.probe_size - len(batch))))
        toward = self.masked.weighted(optimizers.direction(self.optimizer))
        params = list(self.masked.seen.values())
        kept = [param.detach().clone() for param in params]
        losses = []
        self.model.eval()
        for offset in rate.offsets:
            for param, origin, d in zip(params, kept, toward, strict=True):
                torch.add(origin, d, alpha=offset * self.eta, out=param.data)
            self.masked.scatter()
            known = offset == 0 and self.repeatable
            total = self._loss_sum("retain", more if known else [*batch, *more]) + known * loss * len(batch)
            losses.append(total / (len(batch) + len(more)))
        for param, origin in zip(params, kept, strict=True):
            param.data.copy_(origin)
        self.masked.scatter()
        self.model.train()
        fit = rate.fit(losses, self.eta)
        self.eta = rate.update(self.eta, fit)
        return {"losses": losses, "eta": self.eta, **vars(fit)}

    def _loss_sum(self, name: str, indices: Sequence[int]) -> float:
        """The sum of one side's loss in fp32, evaluation mode, no gradient."""
        total = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        for part in self._passes({name: list(indices)}):
            batch = collate(self.sides[name].encoded(part[name]), self.pad).to(self.accelerator.device)
            total += self.sides[name].values(answers(self.bare, batch), part[name])[0].double().sum()
        return self.accelerator.reduce(total, "sum").item()

    # Before the first step, between steps, after a failure

    def _cache_references(self) -> None:
        """Compute what the losses need of the model as it is now, for the examples that will be drawn."""
        size = self.plan.batch_size * self.plan.accumulation
        self.bare.eval()
        for name, side in self.sides.items():
            if side.loss.reference is None:
                continue
            draws = [(step, size) for step in range(self.plan.steps)]
            if isinstance(self.plan.rate, GeN):
                draws += [
                    (step + 1, self.plan.rate.probe_size) for step in range(0, self.plan.steps, self.plan.rate.every)
                ]
            used = {index for step, count in draws for index in self.streams[name].batch(step, count)}
            side.cache = ReferenceCache(
                self.bare, side, used, batch_size=self.plan.batch_size, pad=self.pad, device=self.accelerator.device
            )

    def _stop_reason(self, entry: dict[str, Any]) -> str:
        plan, forget, retain = self.plan, entry.get("forget_nll"), entry.get("retain_nll")
        if plan.stop_forget_nll is not None and forget is not None and forget >= plan.stop_forget_nll:
            return f"forget NLL {forget:.3f} reached {plan.stop_forget_nll:.3f}"
        if retain is None:
            return ""
        if plan.stop_retain_nll is not None and retain > plan.stop_retain_nll:
            return f"retain NLL {retain:.3f} exceeded {plan.stop_retain_nll:.3f}"
        first = self.history.log[0]["retain_nll"] if self.history.log else retain
        if plan.stop_retain_rise is not None and retain > first + plan.stop_retain_rise:
            return f"retain NLL {retain:.3f} rose more than {plan.stop_retain_rise:g} above its start {first:.3f}"
        return ""

    def _check_finite(self, entry: dict[str, Any], step: int) -> None:
        bad = [f"the {name} is {entry[name]}" for name in (*LOSSES, *NORMS) if not math.isfinite(entry.get(name, 0.0))]
        if not bad and not math.isfinite(entry.get("gradient_norm", 0.0)):
            culprit = next(
                name
                for name, param in self.masked.measured.items()
                if param.grad is not None and not torch.isfinite(param.grad).all()
            )
            bad = [f"the gradient of {culprit} is not finite"]
            if step:
                self._save(step)  # the losses were finite: these weights are the last good state
        if bad:
            raise DivergedError(f"Step {step}: {bad[0]}. {self._last_good(step)} Try a smaller lr.")

    def _last_good(self, step: int) -> str:
        if self.folder is not None and checkpoint.exists(self.folder):
            return f"The last good state is the checkpoint of step {checkpoint.step(self.folder)} in {self.folder}."
        return "No weights were written; the original model is untouched." if step else "This is the first step."

    def _save(self, step: int) -> None:
        if self.folder is not None and self.accelerator.is_main_process:
            state = checkpoint.State(step, self.eta, self.history.log, torch.get_rng_state(), self.identity)
            checkpoint.save(self.folder, state, self.masked.seen, self.optimizer, self.mask)

    def _resume(self) -> None:
        if self.folder is None or not checkpoint.exists(self.folder):
            raise ConfigurationError(f"There is no checkpoint in {self.folder} to resume from. Run without --resume.")
        state = checkpoint.restore(self.folder, self.identity, self.masked.seen, self.optimizer)
        self.masked.scatter()
        self.first_step, self.eta = state.step, state.eta
        self.history.log = list(state.log)
        torch.set_rng_state(state.rng)


def has_dropout(model: nn.Module) -> bool:
    """Whether the model computes something else in training mode than in evaluation mode."""
    settings = model.config.to_dict() if hasattr(model, "config") else {}  # type: ignore[union-attr, operator]
    rates = [value for key, value in settings.items() if "drop" in key and isinstance(value, float)]
    return any(rates) or any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
