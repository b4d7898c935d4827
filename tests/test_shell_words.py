"""Messages for a program, said for a shell."""

import ast
import re
from pathlib import Path

import pytest

import forethought
from forethought.shell_words import _WORDS


def said():
    """All texts of the source, as they come out, with some word in the place of each value."""
    for path in Path(forethought.__file__).parent.rglob("*.py"):
        if path.name == "shell_words.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "value" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in _WORDS], ids=lambda pattern: pattern.pattern)
def test_each_fix_that_is_said_otherwise_is_one_that_a_message_has(pattern):
    """A message that is worded anew must not lose its command without anybody knowing."""
    assert any(re.search(pattern, text) for text in said())
