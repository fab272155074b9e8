"""`expunge convert`: an ordinary model folder from a GGUF file, or from an adapter and its base."""

from pathlib import Path

from expunge.errors import ModelError
from expunge.files import atomic_path
from expunge.models import gguf
from expunge.models.checkpoint import stored
from expunge.models.complete import check_folder
from expunge.models.folders import base_folder, is_adapter_folder, resolve
from expunge.patch import lora
from expunge.runs.output import writes


@writes("source", folder=True)
def convert(source: Path | str, out: Path | str, *, overwrite: bool = False) -> Path:
    """Write a full model folder `out`.

    source: a .gguf file or an installed package that carries one (see `models.gguf.convert`); or an adapter folder (or a
    run that holds one), which is merged into its base in fp32 and rounded once to the base's dtype.
    Raises ModelError if the source is missing or neither, PatchError where a merge would change a tied weight.
    """
    out = Path(out)
    if not Path(source).is_dir():
        return gguf.convert(source, out, overwrite=overwrite)
    folder = resolve(source)
    if not is_adapter_folder(folder):
        raise ModelError(f"{folder} is a full model already. Give a .gguf file or an adapter folder.")
    base, adapter = base_folder(folder), stored(folder)
    config = lora.read_config(folder)
    check_folder(base, stored(base))
    with atomic_path(out, overwrite=overwrite) as temporary:
        lora.merge(base, config, adapter, lambda name: adapter[name].read(), temporary)
    return out
