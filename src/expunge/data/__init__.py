"""Chat templates, tokenization, batching; `benchmarks/` holds the field's data sets."""

from expunge.data.batching import Batch, by_length, collate, packs
from expunge.data.encoding import Encoded, Encoder, Encodings, cut_note
from expunge.data.template import Wording

__all__ = ["Batch", "Encoded", "Encoder", "Encodings", "Wording", "by_length", "collate", "cut_note", "packs"]
