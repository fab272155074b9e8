"""Chat templates, tokenization, batching; `benchmarks/` holds the field's data sets."""

from expunge.data.batching import Batch, by_length, collate, packs
from expunge.data.encoding import Encoded, Encoder, cut_note

__all__ = ["Batch", "Encoded", "Encoder", "by_length", "collate", "cut_note", "packs"]
