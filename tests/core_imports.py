"""Import every module of the package with nothing but its core dependencies (and theirs) in reach. Run by `make check`."""

import importlib
import pkgutil
import re
import sys
from collections.abc import Sequence
from importlib import metadata


def core_packages() -> set[str]:
    """Distributions that `pip install spin-native` brings, without extras."""
    found: set[str] = set()
    todo = ["spin-native"]
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        todo += [re.match(r"[\w.-]+", need)[0] for need in needs if "extra ==" not in need]
    return found


class Refuse:
    """An import finder that hides the top-level modules of all other distributions."""

    def __init__(self, hidden: set[str]) -> None:
        self.hidden = hidden

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> None:
        if name.split(".")[0] in self.hidden:
            raise ModuleNotFoundError(f"{name} is no core dependency", name=name)


def main() -> None:
    core = core_packages()
    owners = metadata.packages_distributions()
    normal = {module: {re.sub(r"[-_.]+", "-", d).lower() for d in names} for module, names in owners.items()}
    hidden = {module for module, names in normal.items() if not names & core}
    assert "transformers" in hidden
    assert "torch" not in hidden
    sys.meta_path.insert(0, Refuse(hidden))
    package = importlib.import_module("spin_native")
    names = [module.name for module in pkgutil.walk_packages(package.__path__, "spin_native.")]
    for name in names:
        importlib.import_module(name)
    print(f"{len(names)} modules import with the core dependencies alone ({len(hidden)} other modules hidden)")


if __name__ == "__main__":
    main()
