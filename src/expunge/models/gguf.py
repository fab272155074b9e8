"""Turn a GGUF file into an ordinary model folder: safetensors weights, configuration, tokenizer."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from expunge.errors import ModelError
from expunge.files import atomic_path
from expunge.models.complete import check_nothing_random
from expunge.reading import foreign, read_bytes


def convert(source: Path | str, out: Path | str, *, overwrite: bool = False) -> Path:
    """Dequantize the GGUF file `source` to fp32 and write it as a model folder `out`.

    `source` may also name an installed Python package that carries a single .gguf file (it is found, not imported).
    Needs the extra `expunge[gguf]`. Raises ModelError if the file is missing or of an unsupported architecture.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("Reading GGUF files needs the gguf package: pip install 'expunge[gguf]'.")
    file, out = find(str(source)), Path(out)
    if read_bytes(file, ModelError, first=4) != b"GGUF":
        raise ModelError(f"{file} is no GGUF file: it does not begin with GGUF.")
    with atomic_path(out, overwrite=overwrite) as folder:
        with foreign(file):
            model, info = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True
            )
            tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        check_nothing_random(info, file, type(model).__name__)
        plain(model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return out


def plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same model without its memory of a quantized origin, which makes transformers refuse to save it."""
    config = type(model.config).from_dict(
        {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    )
    fresh = type(model)(config)
    fresh.load_state_dict(model.state_dict())
    fresh.tie_weights()
    fresh.generation_config.eos_token_id = config.eos_token_id
    return fresh


def find(source: str) -> Path:
    """The GGUF file itself, or the one inside an installed package of that name."""
    if Path(source).is_file():
        return Path(source)
    spec = importlib.util.find_spec(source) if source.isidentifier() else None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if len(files) == 1:
        return files[0]
    reason = f"the package holds {len(files)} .gguf files" if spec else "there is no such file, nor such a package"
    raise ModelError(f"{source}: {reason}. Give the path of a .gguf file.")
