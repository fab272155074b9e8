"""Chat templates of the forms that models ship, and tokenizers of each kind: what is prompt, answer, and end of turn."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from expunge.data import Encoded, Encoder, Wording
from expunge.errors import RequestError
from expunge.request import Example

TEXTS = [
    "Who is Ada Lome? It is Ada. She mends old clocks in Tarn, Selm and <|im_end|> </s> places. 0123456789",
    "Question: Answer: System: user assistant system think final analysis channel message Today Date Cutting Knowledge",
    "SEP CLS SEEP CELLS b x bbox one one",
] * 4  # fmt: skip
SPECIAL = [
    "<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<start_of_turn>", "<end_of_turn>", "<eos>",
    "<|user|>", "<|assistant|>", "<|end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|start|>",
    "<|channel|>", "<|message|>", "<|return|>", "[INST]", "[/INST]", "[SEP]", "[CLS]",
]  # fmt: skip
QWEN3 = (
    "{%- for m in messages %}"
    "{%- if m.role == 'assistant' and loop.last %}"
    "{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + m.content + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}"
    "{%- endif %}{%- endif %}"
)
SMOLLM3 = QWEN3.replace(
    "{%- for m in messages %}",
    "{{- '<|im_start|>system\nToday Date: ' + strftime_now('%d %B %Y') + '<|im_end|>\n' }}{%- for m in messages %}",
    1,
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
LLAMA32 = (
    "{%- if strftime_now is defined %}{%- set today = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set today = '26 Jul 2024' %}{%- endif %}"
    "{{- bos_token + '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + today + '\n\n<|eot_id|>' }}"
    "{%- for m in messages %}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim }}"
    "{{- '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
GPT_OSS = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + ('<|return|>' if loop.last else '<|end|>') }}"
    "{%- else %}{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def byte_level(**options: object) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, special_tokens=SPECIAL)
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, **{"bos_token": "<s>", "eos_token": "</s>", **options})


def sentencepiece(**options: object) -> PreTrainedTokenizerFast:
    """As Llama 2's: a space is set before a text, and bytes stand for what is not known."""
    inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    inner.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=600, special_tokens=special))
    inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **options}
    )


def wordpiece(**options: object) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordPiece(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=list("<>|/_[]."))
    )
    inner.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[(name, inner.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, **{"eos_token": "[SEP]", "unk_token": "<unk>", **options})


THOUGHT = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
ASKED = "<|im_start|>user\nWho?<|im_end|>\n"
FORMS = {  # template, eos, prompt, end of the turn
    "qwen3": (QWEN3, "<|im_end|>", ASKED + THOUGHT, "<|im_end|>"),
    "chatml with another eos": (CHATML, "<|endoftext|>", f"{ASKED}<|im_start|>assistant\n", "<|im_end|>"),
    "gemma": (
        GEMMA, "<eos>",
        "<s><start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>",
    ),
    "phi3": (PHI3, "<|endoftext|>", "<|user|>\nWho?<|end|>\n<|assistant|>\n", "<|end|>"),
    "gpt-oss": (
        GPT_OSS, "<|return|>",
        "<|start|>user<|message|>Who?<|end|><|start|>assistant<|channel|>final<|message|>", "<|return|>",
    ),
    "llama 3.2": (
        LLAMA32, "<|eot_id|>",
        f"<s>{HEADER.format('system')}Today Date: 10 Apr 2025\n\n<|eot_id|>{HEADER.format('user')}Who?<|eot_id|>"
        + HEADER.format("assistant"), "<|eot_id|>",
    ),
    "smollm3": (
        SMOLLM3, "<|im_end|>",
        f"<|im_start|>system\nToday Date: 10 April 2025<|im_end|>\n{ASKED}{THOUGHT}", "<|im_end|>",
    ),
}  # fmt: skip


def parts(tokenizer: PreTrainedTokenizerFast, item: Encoded) -> tuple[str, str, str]:
    """The prompt, the answer and the end of the turn as texts."""
    border = len(item) - item.ended
    spans = (item.ids[: item.start], item.ids[item.start : border], item.ids[border:])
    return tuple(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False) for ids in spans)  # type: ignore[return-value]


@pytest.mark.parametrize("form", FORMS)
def test_prompt_answer_and_end_of_each_template(form: str) -> None:
    template, eos, prompt, end = FORMS[form]
    tokenizer = byte_level(eos_token=eos, chat_template=template)
    encoder, example = Encoder(tokenizer), Example(prompt="Who?", response="It is Ada.")
    item = encoder.example(example)
    assert parts(tokenizer, item) == (prompt, "It is Ada.", end)
    assert list(item.ids[: item.start]) == encoder.prompt(example)
    assert encoder.ends == {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(end)}
    # the library's own ids of the same conversation begin with these
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "It is Ada."}]
    dated = template.replace("strftime_now('%d %b %Y')", "'10 Apr 2025'").replace("strftime_now is defined", "true")
    dated = dated.replace("strftime_now('%d %B %Y')", "'10 April 2025'")
    options = {"enable_thinking": False, "chat_template": dated}
    whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
    assert tuple(whole[: len(item)]) == item.ids


@pytest.mark.parametrize("build", [byte_level, sentencepiece, wordpiece])
@pytest.mark.parametrize("words", ["a </s> b <|im_end|> c", "<|im_end|>", "[SEP] x[CLS]", "one</s>"])
@pytest.mark.parametrize("template", [CHATML, None])
def test_no_text_of_a_user_is_a_special_token_or_lost(build, words: str, template: str | None) -> None:
    tokenizer = build(chat_template=template)
    special = {token for name in SPECIAL if (token := tokenizer.convert_tokens_to_ids(name)) is not None}
    encoder = Encoder(tokenizer)
    plain = encoder.example(Example(prompt="Who?", response="Ada"))
    controls = sum(token in special for token in plain.ids)
    for example in (
        Example(prompt=words, response="Ada"),
        Example(prompt="Who?", response=words),
        Example(prompt="Who?", response="Ada", context=(("user", words), ("assistant", "Bo."))),
    ):
        item = encoder.example(example)
        more = 2 * 2 if example.context and template else 0  # two further turns, each with a beginning and an end
        known = [token for token in item.ids if token in special and token != tokenizer.unk_token_id]
        assert len(known) == controls + more
        text = tokenizer.decode(list(item.ids), clean_up_tokenization_spaces=False)
        assert "".join(words.split()) in "".join(text.split())
        assert list(item.ids[: item.start]) == encoder.prompt(example)
    text = encoder.example(Example(prompt="", response=f"The {words} end"))
    inner = text.ids[text.start : len(text) - text.ended]
    assert not special & set(inner)
    assert "".join(words.split()) in "".join(tokenizer.decode(list(inner)).split())


def test_an_answer_behind_a_template_is_spelled_exactly_with_sentencepiece() -> None:
    tokenizer = sentencepiece(chat_template=LLAMA2)
    item = Encoder(tokenizer).example(Example(prompt="Who?", response="It is Ada."))
    assert [text.strip() for text in parts(tokenizer, item)] == ["<s>[INST]  Who? [/INST]", "It is Ada.", "</s>"]
    whole = tokenizer("<s>[INST] Who? [/INST] It is Ada. </s>", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(list(item.ids)) == tokenizer.decode(whole)
    assert item.ids[-1] == tokenizer.eos_token_id
    assert item.ended == 2  # the space before </s> is the template's, not the answer's


@pytest.mark.parametrize("build", [byte_level, sentencepiece])
def test_a_tokenizer_that_appends_eos_puts_none_inside(build) -> None:
    tokenizer = build()
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    plain = Encoder(build()).example(Example(prompt="Who?", response="It is Ada."))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", begin), ("</s>", end)]
    )
    encoder = Encoder(tokenizer)
    item = encoder.example(Example(prompt="Who?", response="It is Ada."))
    assert item.ids.count(end) == 1
    assert item.ids[-1] == end
    assert item.ids == (plain.ids if plain.ids[0] == begin else (begin, *plain.ids))
    assert end not in encoder.prompt(Example(prompt="Who?", response="It is Ada."))
    text = encoder.example(Example(prompt="", response="It is Ada."))
    assert text.ids.count(end) == 1
    assert text.start == 1


@pytest.mark.parametrize(
    ("template", "context", "reason"),
    [
        (GEMMA, (("system", "Be brief."),), "System role not supported"),
        (GEMMA, (("user", "Hello."),), "roles must alternate"),
        ("{% for m in messages %}{{ m.content }}", (), "Unexpected end of template|unexpected end"),
        ("{{ messages[0].content.nothing() }}", (), "nothing"),
    ],
)
def test_a_template_that_refuses_names_the_line(template, context, reason) -> None:
    tokenizer = byte_level(chat_template=template)
    example = Example(prompt="Who?", response="Ada.", context=context, where="rows.jsonl:7")
    with pytest.raises(RequestError, match=rf"rows\.jsonl:7 .*chat template.*({reason})"):
        Encoder(tokenizer).example(example)


def test_half_a_surrogate_pair_names_the_line() -> None:
    for response in ("a \ud800 b",):
        for prompt in ("Who?", ""):
            with pytest.raises(RequestError, match=r"rows\.jsonl:3.*surrogate"):
                Encoder(byte_level()).example(Example(prompt=prompt, response=response, where="rows.jsonl:3"))


def test_the_date_is_the_same_every_day_unless_it_is_chosen() -> None:
    tokenizer, example = byte_level(chat_template=LLAMA32), Example(prompt="Who?", response="Ada.")
    text = tokenizer.decode(Encoder(tokenizer, wording=Wording(date="2026-11-28")).prompt(example))
    assert "Today Date: 28 Nov 2026" in text
    assert "Today Date: 10 Apr 2025" in tokenizer.decode(Encoder(tokenizer).prompt(example))


def test_a_chosen_template_replaces_the_tokenizers_own() -> None:
    tokenizer, example = byte_level(chat_template=CHATML), Example(prompt="Who?", response="Ada.")
    assert tokenizer.decode(Encoder(tokenizer, wording=Wording(chat_template="none")).prompt(example)).startswith(
        "Question: Who?"
    )
    chosen = Encoder(tokenizer, wording=Wording(chat_template=PHI3))
    assert tokenizer.decode(chosen.prompt(example)) == "<|user|>\nWho?<|end|>\n<|assistant|>\n"
    assert tokenizer.convert_tokens_to_ids("<|end|>") in chosen.ends
    assert Encoder(byte_level()).note([example])
    assert Encoder(byte_level(), wording=Wording(chat_template="none")).note([example]) is None
    assert Encoder(tokenizer).note([example]) is None


def test_an_opening_that_no_written_answer_has_is_prompt_and_the_end_is_still_the_templates() -> None:
    template = CHATML.replace("<|im_start|>assistant\n' }}{% endif", "<|im_start|>assistant\n<think>\n' }}{% endif")
    tokenizer = byte_level(eos_token="<|endoftext|>", chat_template=template)
    encoder, example = Encoder(tokenizer), Example(prompt="Who?", response="It is Ada.")
    prompt, answer, end = parts(tokenizer, encoder.example(example))
    assert prompt.endswith("<|im_start|>assistant\n<think>\n")
    assert (answer, end) == ("It is Ada.", "<|im_end|>")


def test_an_end_that_is_no_special_token_is_found() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<turn/>", special=False, normalized=False)])
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "<turn/>")
    item = Encoder(tokenizer).example(Example(prompt="Who <turn/>?", response="A <turn/> b."))
    end = tokenizer.convert_tokens_to_ids("<turn/>")
    assert item.ids[-1] == end
    assert item.labels.count(end) == 1
    assert parts(tokenizer, item)[1] == "A <turn/> b."
