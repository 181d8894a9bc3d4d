"""Every module can be the first one that a program imports."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import spin_native

ROOT = Path(spin_native.__file__).parent


def module_name(path):
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in ROOT.rglob("*.py")}


def imported(name):
    """The modules of the package that run before `name` is complete: its own imports, and the packages that hold those.

    Imports inside functions and under TYPE_CHECKING are not among them.
    """
    found = set()
    for statement in ast.parse(MODULES[name].read_text(encoding="utf-8")).body:
        names = []
        if isinstance(statement, ast.ImportFrom) and statement.module is not None:
            submodules = [f"{statement.module}.{alias.name}" for alias in statement.names]
            names = [statement.module, *submodules]
        elif isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        for one in names:
            parts = one.split(".")
            found |= {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
    own = name.split(".")
    packages_of_its_own = {".".join(own[:n]) for n in range(1, len(own) + 1)}  # they are being imported already
    return (found & MODULES.keys()) - packages_of_its_own


def test_no_modules_import_each_other_in_a_circle():
    order = list(TopologicalSorter({name: imported(name) for name in MODULES}).static_order())  # CycleError names a circle
    assert len(order) == len(MODULES) > 100
