"""python -m examples.sentiment: finetune an adapter per domain on human-rated snippets, compare, serve them mixed."""

import argparse
import json
import sys
from pathlib import Path

from examples import reporting

from . import experiment, report
from .fetch import CACHE

# Float32 on batches padded differently: roundings of 1e-7 through six layers.
LARGEST_DIFFERENCE = 1e-4


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.sentiment", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny parts of the data, under a minute; says nothing")
    parser.add_argument("--out", type=Path, help="folder of the results (default: where the committed ones are)")
    parser.add_argument("--method", help="only this one, into the committed results of all of them; without times")
    arguments = parser.parse_args(argv)
    if arguments.method:
        return add(arguments.method)
    out = arguments.out or (CACHE / "quick" if arguments.quick else report.RESULTS)
    plan = experiment.QUICK if arguments.quick else experiment.FULL
    adapters = CACHE / ("adapters-quick" if arguments.quick else "adapters")
    path = reporting.write(experiment.run(plan, adapters), out)
    result = json.loads(path.read_text())
    report.plot(result, path.with_suffix(".png"))
    print(report.text(result))
    print(f"\nwritten: {path} and {path.with_suffix('.png').name}")
    worst = max(way["difference"] for way in result["serving"]["ways"].values())
    if not worst <= LARGEST_DIFFERENCE:
        sys.exit(f"FAILED: a request in the mixed batch differs from itself alone by {worst:.1e}")


def add(method: str) -> None:
    path = reporting.newest(report.RESULTS)
    result = json.loads(path.read_text())
    rows = {**result["methods"], method: experiment.run_one(experiment.FULL, method)}
    result["methods"] = {name: rows[name] for name in experiment.METHODS if name in rows}
    path.write_text(json.dumps(result, indent=1) + "\n")
    report.plot(result, path.with_suffix(".png"))
    print(report.text(result))


if __name__ == "__main__":
    main()
