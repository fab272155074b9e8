"""Random models of a named architecture, in memory and as folders."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from expunge.data.benchmarks.fictional import build_tokenizer
from expunge.models import Loaded
from tests.conftest import FORGET, RETAIN
from tests.helpers.architectures import NAMES


def words() -> PreTrainedTokenizerBase:
    """The tokenizer of the shared examples, without a pad token."""
    return build_tokenizer([" ".join(map(str, record.values())) for record in FORGET + RETAIN], 400)


def random_model(name: str, tokenizer: PreTrainedTokenizerBase | None = None) -> Loaded:
    tokenizer = tokenizer or words()
    return Loaded(NAMES[name].build(len(tokenizer)), tokenizer, Path("random"))
