"""A request as it is trained and measured: its conversations' target turns, and its long texts in chunks."""

from pathlib import Path

from expunge.data import Wording
from expunge.data.corpus import cut_request, holds_text, target_request
from expunge.models.loading import open_encoder
from expunge.request import Request


def in_chunks(
    request: Request,
    model: Path | str,
    *,
    max_length: int,
    chunk_tokens: int | None,
    wording: Wording = Wording(),
    trust_remote_code: bool = False,
) -> Request:
    """`request` with an example for every target turn, and every text of more than `chunk_tokens` tokens in chunks.

    chunk_tokens: default `max_length`. The tokenizer of `model` is read only where there is a text to cut.
    """
    request = target_request(request, wording.targets)
    if not holds_text((*request.forget, *request.retain, *request.holdout)):
        return request
    encoder = open_encoder(model, max_length, trust_remote_code=trust_remote_code, wording=wording)
    return cut_request(request, encoder, chunk_tokens)
