"""The documents are true: code blocks run and print what they say, links and commands exist, quoted lines are the code's."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import click
import pytest

from spin_native.cli.main import cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/methods.md",
    "docs/benchmarks.md",
    "docs/promises.md",
    "docs/research.md",
    "weights/README.md",
)


def text_of(document):
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document):
    """(language, content) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text_of(document), flags=re.DOTALL | re.MULTILINE)


def test_the_readme_is_short():
    assert len(text_of("README.md").splitlines()) <= 150


def test_the_python_blocks_of_the_readme_run_and_print_what_it_says(minilm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}
    found = blocks("README.md")
    python = [index for index, (language, _) in enumerate(found) if language == "python"]
    assert len(python) >= 2
    for index in python:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(found[index][1], "README.md", "exec"), names)
        language, expected = found[index + 1]
        assert language == "text"
        assert printed.getvalue() == expected


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_of_a_document_exists_with_its_options(document):
    for _, content in blocks(document):
        for line in re.findall(r"^spin-native .*$", content, flags=re.MULTILINE):
            _, name, *rest = shlex.split(line, comments=True)
            command = cli.get_command(click.Context(cli), name)
            assert command is not None, line
            known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
            assert {word for word in rest if word.startswith("--")} <= known, line


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_of_a_document_leads_to_a_file(document):
    prose = re.sub(r"`[^`\n]*`", "", text_of(document))
    for link in re.findall(r"\]\(((?!http)[^)#\s]+)", prose):
        assert ((ROOT / document).parent / link).exists(), link


def test_every_quoted_line_computes_what_the_methods_say():
    quotes = re.findall(r"\[([\w/.]+):(\d+)\]\(\.\./([\w/.]+)#L(\d+)\) `(.+?)` \|", text_of("docs/methods.md"))
    assert len(quotes) >= 12
    for shown_path, shown_line, path, line, quoted in quotes:
        assert (shown_path, shown_line) == (path, line)
        actual = text_of(path).splitlines()[int(line) - 1].strip()
        assert actual == quoted, f"{path}:{line}"


def test_every_path_that_contributing_names_exists():
    paths = re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", text_of("CONTRIBUTING.md"))
    assert len(paths) >= 25
    for path in paths:
        assert (ROOT / path).exists() or (ROOT / "spin_native" / path).exists(), path


def test_the_file_tree_of_contributing_is_the_real_one():
    (tree,) = [content for _, content in blocks("CONTRIBUTING.md") if content.startswith("spin_native/")]
    listed, stack = set(), []
    for line in tree.splitlines():
        match = re.match(r"( *)(\S+)", line)
        assert match, line
        level = len(match[1]) // 2
        stack[level:] = [match[2].rstrip("/")]
        listed.add("/".join(stack))
    for path in listed:
        assert (ROOT / path).exists(), path
    modules = {
        str(path.relative_to(ROOT))
        for folder in ("spin_native", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert modules <= listed
