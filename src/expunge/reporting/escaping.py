"""Text from data, paths and settings, made safe for Markdown: it shows as it is and is never syntax."""

import re
import unicodedata

# What begins a construct of CommonMark or of GitHub's extensions anywhere in a line: emphasis, code, links, HTML, entities,
# tables, strikethrough, mathematics and addresses that become links by themselves.
INLINE = re.compile(r"([\\`*_\[\]<>|~&$]|:(?=//)|(?<=\bwww)\.)")
# What does so at the beginning of a block only: headings, lists, rules and setext underlines.
LEADING = re.compile(r"^([#+=-]|\d{1,9}(?=[.)]))")


def visible(text: object) -> str:
    """The text on one line, with control and direction characters written as escapes such as `\\x1b`."""
    line = " ".join(str(text).split())
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co") else char
        for char in line
    )


def safe(text: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    escaped = INLINE.sub(r"\\\1", visible(text))
    begin = LEADING.match(escaped)
    if begin is None:
        return escaped
    sign = begin.group()
    return f"{sign}\\{escaped[len(sign) :]}" if sign.isdigit() else f"\\{escaped}"


def code(text: object) -> str:
    """A Markdown code span that shows the text as it is, whatever backticks and pipes it holds."""
    content = visible(text)
    if not content:
        return "–"
    if "|" in content:  # a pipe ends a table's cell even inside a code span
        return safe(content)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", content)), default=0))
    space = " " if content.startswith("`") or content.endswith("`") else ""
    return f"{fence}{space}{content}{space}{fence}"
