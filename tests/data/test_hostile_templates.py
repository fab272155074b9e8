"""A chat template that never ends, fills the memory or is broken ends in an error that names the line."""

import time

import pytest

from expunge.data import Encoder, template
from expunge.data.template import Wording
from expunge.errors import RequestError
from expunge.request import Example

EXAMPLE = Example(prompt="Who mends clocks?", response="Ada Lome.", where="forget.jsonl:3")
BAD = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops of lists": "{% set x = range(9999)|list %}{% for a in x %}{% for b in x %}{% for c in x %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "recursion": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "double recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "memory": "{{ 'x' * 99999999999 }}",
    "doubling": "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "length": "{{ 'x' * 9999999 }}",
    "syntax": "{% for %}",
    "unknown tag": "{% include 'x' %}",
    "escape": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "refusal": "{{ raise_exception('System role not supported') }}",
    "type": "{{ messages + 1 }}",
}


@pytest.mark.parametrize("name", BAD)
def test_a_hostile_template_is_refused_in_bounded_time(tiny, monkeypatch, name: str) -> None:
    monkeypatch.setattr(template, "SECONDS", 1)
    monkeypatch.setattr(template, "MEMORY", 1 << 30)
    encoder = Encoder(tiny.tokenizer, 256, Wording(chat_template=BAD[name] + "{{ messages[0]['content'] }}"))
    begun = time.monotonic()
    with pytest.raises(RequestError, match=r"forget\.jsonl:3"):
        encoder.example(EXAMPLE)
    assert time.monotonic() - begun < 8
    assert encoder_works(tiny)


def encoder_works(tiny) -> bool:
    """Nothing of the bound is left behind."""
    plain = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    encoder = Encoder(tiny.tokenizer, 256, Wording(chat_template=plain))
    time.sleep(0.01)
    return len(encoder.example(EXAMPLE).ids) > 3
