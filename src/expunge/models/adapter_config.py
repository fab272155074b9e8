"""An adapter's configuration, checked before PEFT sees it: PEFT allocates, imports and matches what it says unchecked."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from expunge.errors import ModelError
from expunge.models.header import read_header
from expunge.reading import read_object

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LIMIT = 1 << 20  # bytes of a configuration; one that lists every layer has some thousands
LARGEST = 1 << 16  # of a size that no stored tensor shows
SECONDS = 5  # for all patterns against all names; usual ones take milliseconds
REQUIRED = {"LORA": ("r", "lora_alpha", "target_modules")}
SIZES = ("r", "init_r", "target_r", "num_virtual_tokens")  # each is a dimension of a stored tensor
PATTERNS = ("target_modules", "exclude_modules", "layers_pattern")  # regular expressions, where they are texts
TABLES = ("rank_pattern", "alpha_pattern")  # their keys are regular expressions
PLAIN = re.compile(r"[\w.-]*")
# run apart, so that it can be stopped: each pattern in every form in which PEFT matches it
MATCHING = r"""
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    try:
        forms = [re.compile(form % pattern) for form in ("%s", r"(.*\.)?(%s)$", r".*\.%s\.(\d+)\.")]
    except (re.error, OverflowError, RecursionError) as error:
        sys.exit(f"{pattern[:80]!r} is no regular expression: {error}")
    for name in names:
        for form in forms:
            form.match(name), form.fullmatch(name)
"""


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The configuration of an adapter folder. Raises ModelError if it is damaged, or as `check_adapter_config`."""
    settings = read_object(folder / CONFIG, ModelError, limit=LIMIT)
    shapes = [entry.shape for entry in read_header(folder / WEIGHTS, ModelError)[1].values()]
    check_adapter_config(settings, shapes, folder / CONFIG)
    return settings


def check_adapter_config(settings: Mapping[str, Any], shapes: Iterable[tuple[int, ...]], file: Path | str) -> None:
    """Check an adapter's configuration against the shapes of its tensors.

    Raises ModelError, naming the file and the setting, if it is of an unknown kind or of another task than causal
    language modelling, lacks a setting that its weights mean nothing without, has a size that the tensors do not show,
    a setting that this PEFT does not know, or one that would import code or repeat layers.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = settings.get("peft_type")
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise ModelError(f"{file}: peft_type {kind!r} is no kind of adapter that PEFT knows, such as LORA.")
    task = settings.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise ModelError(f"{file}: task_type {task!r} is of another kind of model. Give an adapter of a causal LM.")
    missing = [name for name in REQUIRED.get(kind, ()) if name not in settings]
    if missing:
        raise ModelError(f"{file} lacks {missing[0]!r}, without which the adapter's weights mean nothing.")
    known = PEFT_TYPE_TO_CONFIG_MAPPING[kind].__dataclass_fields__
    unknown = [name for name, value in settings.items() if name not in known and value]
    if unknown:
        raise ModelError(f"{file}: this version of PEFT does not know the setting {unknown[0]!r}. Install a newer one.")
    refused = [
        name for name in ("megatron_config", "layer_replication", "alora_invocation_tokens") if settings.get(name)
    ]
    if refused:
        raise ModelError(f"{file}: adapters with {refused[0]!r} are not supported.")
    base = settings.get("base_model_name_or_path")
    if isinstance(base, str) and any(len(part.encode()) > 255 for part in base.split("/")):
        raise ModelError(f"{file}: base_model_name_or_path is no path: a part of it has more than 255 bytes.")
    _check_values(settings, file)
    _check_sizes(settings, shapes, file)


def check_patterns(settings: Mapping[str, Any], names: Iterable[str], file: Path | str) -> None:
    """Raise ModelError if a regular expression of the configuration is none, or takes longer than `SECONDS`.

    names: of the base model's modules, against which PEFT matches them.
    """
    texts = [settings.get(name) for name in PATTERNS]
    texts += [pattern for name in TABLES for pattern in settings.get(name) or {}]
    patterns = [text for text in texts if isinstance(text, str) and not PLAIN.fullmatch(text)]
    if not patterns:
        return
    command = [sys.executable, "-I", "-S", "-c", MATCHING]
    try:
        done = subprocess.run(
            command, input=json.dumps([patterns, list(names)]), capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"{file}: its regular expressions take more than {SECONDS} s to match the names of the model's "
            f"layers ({patterns[0][:80]!r}). Name the layers instead."
        ) from None
    if done.returncode:
        raise ModelError(f"{file}: {done.stderr.strip().splitlines()[-1]}.")


def _check_values(settings: Mapping[str, Any], file: Path | str) -> None:
    """The types of the settings that PEFT does not check itself."""
    for name in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save"):
        value = settings.get(name)
        listed = isinstance(value, list) and all(isinstance(item, str) and item for item in value)
        if value is not None and not listed and not (isinstance(value, str) and value and name != "modules_to_save"):
            raise ModelError(f"{file}: {name} must be a text or a list of texts.")
    for name in TABLES:
        table = settings.get(name) or {}
        if not isinstance(table, dict) or not all(map(_number, table.values())):
            raise ModelError(f"{file}: {name} must be a table of names and numbers.")
    for name in ("use_rslora", "use_dora", "fan_in_fan_out", "lora_bias"):
        if not isinstance(settings.get(name, False), bool):
            raise ModelError(f"{file}: {name} must be true or false.")
    if "lora_alpha" in settings and not _number(settings["lora_alpha"]):
        raise ModelError(f"{file}: lora_alpha must be a number, not {settings['lora_alpha']!r}.")


def _check_sizes(settings: Mapping[str, Any], shapes: Iterable[tuple[int, ...]], file: Path | str) -> None:
    largest = max((size for shape in shapes for size in shape), default=0)
    sizes = [(name, settings[name], largest) for name in SIZES if settings.get(name) is not None]
    sizes += [(f"rank_pattern[{key!r}]", rank, largest) for key, rank in (settings.get("rank_pattern") or {}).items()]
    sizes += [
        (name, value, max(largest, LARGEST))
        for name, value in settings.items()
        if type(value) is int and name not in (*SIZES, "lora_alpha")
    ]
    for name, value, limit in sizes:
        if type(value) is not int or not 0 <= value <= limit or (name == "r" and not value):
            raise ModelError(f"{file}: {name} is {value!r}, and the adapter's tensors have no such size.")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
