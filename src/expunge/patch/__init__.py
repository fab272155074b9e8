"""A parameter update as a file that can be inspected, applied and reverted bit by bit."""

from expunge.patch.arithmetic import apply, create, revert
from expunge.patch.compose import compose
from expunge.patch.format import Change, Manifest, Patch, Totals
from expunge.patch.undo import undo

diff = create

__all__ = ["Change", "Manifest", "Patch", "Totals", "apply", "compose", "create", "diff", "revert", "undo"]
