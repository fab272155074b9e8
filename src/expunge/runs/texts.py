"""Long running text in a request: cut into chunks with the model's tokenizer, which is read only where it is needed."""

from pathlib import Path

from expunge.data.corpus import cut_request, holds_text
from expunge.models.loading import open_encoder
from expunge.request import Request


def in_chunks(
    request: Request, model: Path | str, *, max_length: int, chunk_tokens: int | None, trust_remote_code: bool = False
) -> Request:
    """`request` with every text of more than `chunk_tokens` tokens (default `max_length`) in chunks of that length."""
    if not holds_text((*request.forget, *request.retain, *request.holdout)):
        return request
    encoder = open_encoder(model, max_length, trust_remote_code=trust_remote_code)
    return cut_request(request, encoder, chunk_tokens)
