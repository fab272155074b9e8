"""Chat templates, tokenization, batching; `benchmarks/` holds the field's data sets."""

from expunge.data.batching import Batch, by_length, collate, packs
from expunge.data.encoding import Encoded, Encoder, Encodings, cut_note

__all__ = ["Batch", "Encoded", "Encoder", "Encodings", "by_length", "collate", "cut_note", "packs"]
