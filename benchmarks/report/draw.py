"""Draws the plots that a machine has results for."""

import sys
from pathlib import Path

from ..harness import record
from .cost_plot import cost
from .figure import set_style
from .model_plots import generation_plot, training_plot
from .model_tables import TABLES
from .plots import bandwidth, overhead, resident

PLOTS = (  # benchmark, plot, file
    ("layer", cost, "cost.png"),
    ("layer", overhead, "overhead.png"),
    ("single_op", bandwidth, "bandwidth.png"),
    ("layer", resident, "resident.png"),
    ("generation", generation_plot, "generation.png"),
    ("training", training_plot, "training.png"),
)


def draw_all(results: dict[str, dict], folder: Path) -> list[Path]:
    """Saves the plots that ``results`` (by benchmark) have data for in ``folder``, as PNG."""
    set_style()
    made = []
    for name, plot, file in PLOTS:
        if name in results and (figure := plot(results[name])) is not None:
            figure.savefig(folder / file, dpi=130)
            made.append(folder / file)
    return made


def show(name: str, path: Path) -> None:
    """Prints the table of a finished run of generation or training and draws its plot beside it."""
    result = record.load(path)
    print(f"\n{TABLES[name](result)}\n")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return
    for made in draw_all({name: result}, path.parent):
        print(f"wrote {made}")
