"""Text in Markdown, read back by another library's parser: what it shows is what was put in."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from expunge.reporting.escaping import code, safe, visible

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
NASTY = (
    "<script>alert(1)</script>", "[x](http://evil.example)", "![x](y)", "`a` ``b``", "a|b", "*a* _b_ __c__ ~~d~~",
    "# no heading", "- no list", "1. no list", "1) no list", "+ x", "===", "---", "&lt;b&gt;", "a\\*b", "[/INST]",
    "<http://a.example>", "$x$", "tail\\", "tail`", "line\nbreak", "  padded  ", "a  \nb", "> quote", "|", "`",
    "[x]: http://a.example", "\\|", "\\`|",
)  # fmt: skip


def shown(tokens: list[Token]) -> tuple[str, set[str]]:
    """The text a reader sees, and the kinds of markup it is in."""
    text, kinds = "", set()
    for token in tokens:
        for child in token.children or ():
            kinds.add(child.type)
            text += child.content if child.type in ("text", "code_inline", "html_inline") else ""
        kinds.add(token.type)
    return text, kinds


@given(st.text(st.sampled_from("ab1 .)#*_`[]()<>|~&$\\!-+=:/\n\t\u202e\x1b"), min_size=1, max_size=30))
@example("1.")
def test_any_text_is_shown_as_it_is(text: str) -> None:
    if not visible(text):
        return
    paragraph, kinds = shown(MARKDOWN.parse(safe(text)))
    assert paragraph == visible(text)
    assert kinds <= {"paragraph_open", "paragraph_close", "inline", "text"}
    for written in (safe(text), code(text)):
        cells = MARKDOWN.parse(f"| a | b |\n| --- | --- |\n| {written} | end |\n")
        inlines = [token for token in cells if token.type == "inline"]
        assert [shown([token])[0] for token in inlines] == ["a", "b", visible(text), "end"]


@pytest.mark.parametrize("text", NASTY)
def test_nasty_texts(text: str) -> None:
    assert shown(MARKDOWN.parse(safe(text)))[0] == visible(text)
    paragraph, kinds = shown(MARKDOWN.parse(f"- key: {code(text)}"))
    assert paragraph == f"key: {visible(text)}"
    assert not kinds & {"html_inline", "link_open", "image"}


def test_control_and_direction_characters_are_written_out() -> None:
    assert visible("\x1b[31mred\u202e\x07") == "\\x1b[31mred\\u202e\\x07"
    assert visible("名前 é\tb") == "名前 é b"
