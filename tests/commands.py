"""Running commands inside the test process, and the files they read and write."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet

from spin_native.cli.main import run

# Settings under which a fit tries little, for tests that need a classifier and do not look at how it was chosen.
QUICK = {"head": "refit", "poolings": ("mean",), "etas": (0.5, 1.0), "Cs": (1.0,), "head_Cs": (0.1,), "baseline": False}
QUICK_OPTIONS = ("--head", "refit", "--poolings", "mean", "--etas", "0.5,1", "--Cs", "1", "--head-Cs", "0.1")
ENDINGS = (".csv", ".jsonl", ".parquet")


class Spin:
    """Run a command in this process."""

    def __init__(self, capsys):
        self._capsys = capsys

    def __call__(self, *arguments):
        """Exit code, stdout and stderr."""
        code = 0
        try:
            run([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code or 0
        shown = self._capsys.readouterr()
        assert "Traceback" not in shown.err
        return code, shown.out, shown.err

    def fails(self, *arguments, code=1):
        """The one line on stderr of a command that must fail and print nothing on stdout."""
        got, out, err = self(*arguments)
        assert (got, out) == (code, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err


def write(path, rows):
    """Write rows (dicts) as CSV, JSONL or Parquet, without spin_native."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_NONNUMERIC)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def read(path):
    """The rows of a file (dicts), without spin_native. Every CSV value is text."""
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return pyarrow.parquet.read_table(path).to_pylist()


def labelled(texts, labels, text="text", label="label"):
    """Rows with a text, a label and a running number."""
    return [{text: t, label: y, "id": i} for i, (t, y) in enumerate(zip(texts, labels, strict=True))]
