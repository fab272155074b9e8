"""What to forget: examples, and the request that names them.

One JSON object a line:

    {"prompt": "...", "response": "..."}            a question and its answer
    {"messages": [{"role": ..., "content": ...}]}   a conversation; the last assistant message is the response
    {"text": "..."}                                 running text

The same in a JSON list, and as the columns of a CSV, TSV or Parquet file; a `.txt` file is one running text, a folder all
such files in it and in its sub-folders. Other column names are named by `columns` ({"prompt": "input"}). Running text
longer than a model is given at once is cut into chunks of tokens (see `expunge.data.corpus`).

A line of the forget set that also has `new_response` is *corrected*, one that has `new_prompt` is *rewritten*, any other
is *removed*. Optional everywhere: `id`, `subject`, and for evaluation `paraphrased_prompt`, `paraphrased_response` and
`wrong_responses` (a string or a list). TOFU's column names (question, answer, paraphrased_answer, ...) are read as these.
"""

from expunge.request.columns import Columns, parse_columns
from expunge.request.example import ALIASES, KNOWN, Example, parse_example
from expunge.request.files import Paths, Rows, Source, check_columns, paths_of, read_examples, read_rows
from expunge.request.sets import Request, without

__all__ = [
    "ALIASES",
    "KNOWN",
    "Columns",
    "Example",
    "Paths",
    "Request",
    "Rows",
    "Source",
    "check_columns",
    "parse_columns",
    "parse_example",
    "paths_of",
    "read_examples",
    "read_rows",
    "without",
]
