"""A mask made before, read from its file."""

from dataclasses import dataclass
from pathlib import Path

from expunge.attribution.contract import Attribution, Scores, View
from expunge.errors import ConfigurationError
from expunge.models.mask import Mask


@dataclass(frozen=True, kw_only=True)
class FromFile(Attribution):
    """The mask in the file `path`, made by `expunge attribute` for exactly this model; ratio and scope have no say.

    Raises ConfigurationError if the file is no mask or one for another model.
    """

    path: str = ""

    def scores(self, view: View) -> Scores:
        raise ConfigurationError("A mask file holds no scores, only which weights are kept.")

    def opened(self) -> Mask:
        """The mask, whichever model it is for."""
        if not self.path:
            raise ConfigurationError("mask=file needs the path of the mask: give mask.path, or --mask PATH.")
        return Mask.open(Path(self.path))

    def mask(self, view: View) -> Mask:
        found = self.opened()
        found.check(view.loaded)
        return found
