"""python -m examples.composition: two tasks in disjoint halves of one adapter, then each alone and both together."""

import argparse
import json
import sys
from pathlib import Path

from examples import reporting
from examples.sentiment.fetch import CACHE

from . import experiment, report


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.composition", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny parts of the data, under a minute; says nothing")
    parser.add_argument("--out", type=Path, help="folder of the results (default: where the committed ones are)")
    arguments = parser.parse_args(argv)
    out = arguments.out or (CACHE / "quick-composition" if arguments.quick else report.RESULTS)
    path = reporting.write(experiment.run(experiment.QUICK if arguments.quick else experiment.FULL), out)
    result = json.loads(path.read_text())
    report.plot(result, path.with_suffix(".png"))
    print(report.text(result))
    print(f"\nwritten: {path} and {path.with_suffix('.png').name}")
    for what, limit in experiment.LIMITS.items():
        if not result["checks"][what] <= limit:
            sys.exit(f"FAILED: {what}: {result['checks'][what]:.1e}, at most {limit:.1e} expected")


if __name__ == "__main__":
    main()
