"""YAML that others wrote: of bounded size, nesting and aliases, each key once, every fault a typed error."""

from typing import Any

import yaml

from expunge.errors import ConfigurationError
from expunge.reading import foreign

LIMIT = 1 << 18  # bytes of a file of settings; the recipes have a few hundred
DEPTH = 50  # levels of lists and mappings in each other
VALUES = 10_000  # values, each alias counted as what it stands for
UNDER_WAY = (-1, -1)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text that came from `where`.

    Raises ConfigurationError with the line for anything that is not plain YAML, a key given twice in one mapping, an
    alias within what it names, more than `DEPTH` levels or more than `VALUES` values with aliases written out.
    """
    try:
        with foreign(where, ConfigurationError, what="is not valid YAML"):
            loader = yaml.SafeLoader(text)
            try:
                node = loader.get_single_node()
                if node is None:
                    return None
                _count(node, where, DEPTH, {})
                return loader.construct_document(node)
            finally:
                loader.dispose()
    except ConfigurationError as error:
        if not isinstance(error.__cause__, yaml.YAMLError):
            raise
        mark = getattr(error.__cause__, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error.__cause__, "problem", None) or "a character that YAML does not allow"
        raise ConfigurationError(f"{where}{line}: not valid YAML: {problem}.") from None


def _count(node: yaml.Node, where: str, levels: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many values a node holds, and in how many levels, with its aliases written out.

    levels: how many there may be. known: the answers for nodes that were seen; `UNDER_WAY` for those not yet counted.
    """
    where_at = f"{where}:{node.start_mark.line + 1}"
    total, height = known.get(id(node), (1, 1))
    if (total, height) == UNDER_WAY:
        raise ConfigurationError(f"{where_at}: an alias refers to a value that contains it.")
    if height > levels:
        raise ConfigurationError(f"{where_at}: the YAML is nested too deeply (more than {DEPTH} levels).")
    if id(node) in known:
        return total, height
    known[id(node)] = UNDER_WAY
    for part in _parts(node, where_at):
        count, below = _count(part, where, levels - 1, known)
        total, height = total + count, max(height, below + 1)
        if total > VALUES:
            raise ConfigurationError(f"{where_at}: more than {VALUES} values with the aliases written out.")
    known[id(node)] = total, height
    return total, height


def _parts(node: yaml.Node, where: str) -> list[yaml.Node]:
    """The keys and values of a mapping, the items of a list, nothing of a scalar."""
    if isinstance(node, yaml.SequenceNode):
        return node.value
    if not isinstance(node, yaml.MappingNode):
        return []
    names: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigurationError(f"{where}: a list or a mapping cannot be a key.")
        if (key.tag, key.value) in names:
            raise ConfigurationError(f"{where}: {key.value!r} is given twice. Leave one of the two out.")
        names.add((key.tag, key.value))
    return [part for pair in node.value for part in pair]
