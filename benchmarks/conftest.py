"""What test_speed.py prints around pytest-benchmark's table: the environment first, one JSON line last."""

from typing import Any

from machine import environment, print_json


def pytest_sessionstart(session: Any) -> None:
    session.config.spin_native_environment = environment()


def pytest_unconfigure(config: Any) -> None:
    """Medians in seconds, and two ratios; nothing where the benchmarks were not timed."""
    timed = getattr(getattr(config, "_benchmarksession", None), "benchmarks", [])
    medians = {benchmark.name: benchmark.stats.median for benchmark in timed if benchmark.stats.data}
    results: dict[str, Any] = {"median_seconds": medians}
    ours = medians.get("test_forward_to_depth[6]")
    if ours:
        for ratio, other in (
            ("times_as_fast_as_transformers", "test_peer_transformers_all_layers"),
            ("time_over_bare_products", "test_limit_bare_products_of_all_layers"),
        ):
            if other in medians:
                results[ratio] = medians[other] / ours if ratio.startswith("times") else ours / medians[other]
    if medians:
        print_json(config.spin_native_environment, results)
