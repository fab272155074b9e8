"""What a method did, step by step, and what it chose."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class History:
    """What happened: one entry a step, why the loop ended, notes, and what else a report shows (`found`)."""

    log: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = ""
    notes: list[str] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return len(self.log)

    @property
    def chosen(self) -> dict[str, float]:
        """What the method chose by itself: the scale α of a task vector, or each round's damping λ of a solve."""
        alpha = self.found.get("update", {}).get("alpha")
        rounds = self.found.get("solve", {}).get("rounds", [])
        return ({} if alpha is None else {"alpha": alpha}) | {
            f"damping_{number}": entry["damping"] for number, entry in enumerate(rounds, 1)
        }
