"""The README is true: its Python blocks run in order, its commands exist, its file tree is the real one."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    return [body for named, body in fenced if named == language]


def test_the_python_blocks_run(minilm, tmp_path, monkeypatch):
    assert len(blocks("python")) >= 2
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)


def test_every_file_of_the_tree_exists_and_every_module_is_in_it():
    (tree,) = [block for block in blocks("") if block.startswith("spin_native/")]
    listed, stack = set(), []
    for line in tree.splitlines():
        match = re.match(r"( *)(\S+)", line)
        assert match, line
        level = len(match[1]) // 2
        stack[level:] = [match[2].rstrip("/")]
        listed.add("/".join(stack))
    for path in listed:
        assert (ROOT / path).exists(), path
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "spin_native").rglob("*.py") if path.name != "__init__.py"}
    assert modules <= listed


@pytest.mark.parametrize("link", re.findall(r"\]\(((?!http)[^)#]+)#L(\d+)\)", README))
def test_the_line_an_equation_points_to_computes_it(link):
    path, line = link
    text = (ROOT / path).read_text(encoding="utf-8").splitlines()[int(line) - 1].strip()
    assert f"`{text}`" in README, f"{path}:{line} now reads: {text}"
