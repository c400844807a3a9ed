"""From the recorded results to tables and a plot: python -m examples.composition.report [results.json] [--readme]."""

import statistics
from pathlib import Path

from benchmarks.report.tables import markdown
from examples.reporting import mean_and_spread, show

RESULTS = Path(__file__).parent / "results"
MEASURES = ("spearman", "accuracy")


def outcome_table(result: dict, mix: str) -> str:
    frozen = result["frozen"]
    rows = [["before training", f"{frozen['spearman']:.3f}", f"{frozen['accuracy']:.3f}"]]
    for use, scores in result["mixes"][mix].items():
        rows.append([use, *(mean_and_spread([s[measure] for s in scores]) for measure in MEASURES)])
    return markdown(["used on the test part", "A: rating, Spearman", "B: origin, accuracy"], rows)


def rates_table(result: dict) -> str:
    rows = [
        [rate, *(f"{v[how][m]:.3f}" for how in ("alone", "both") for m in MEASURES)]
        for rate, v in result["validation"].items()
    ]
    return markdown(["learning rate", "A alone", "B alone", "A, both halves", "B, both halves"], rows)


def measures_table(result: dict, measure: str, digits: int) -> str:
    measures = result["measures"]
    layers = len(next(iter(measures.values()))[measure])
    rows = [[use, *(f"{value:.{digits}f}" for value in m[measure])] for use, m in measures.items()]
    return markdown([measure, "embedding", *map(str, range(1, layers))], rows)


def text(result: dict) -> str:
    m, sizes, (first, second) = result["machine"], result["sizes"], result["mixes"]
    how = "chosen on the validation part" if result["validation"] else "not chosen in this run"
    checks = "; ".join(f"{what}: {value:.1e}" for what, value in result["checks"].items())
    rates = [
        f"The validation part after batches of {first}, first seed (a rate is chosen by each task on its own half):",
        "",
        rates_table(result),
        "",
    ]
    return "\n".join(
        [
            f"{m['processor']}, {m['threads']} threads, torch {m['torch']}; {result['minutes']:.0f} minutes in all. "
            f"{sizes['train']} snippets of the four domains to train on, seen once, {sizes['validation']} to choose "
            f"and {sizes['test']} to test on; {result['parameters_of_a_half']:,} parameters in each half; learning "
            f"rate {result['rate']:g} ({how}); seeds: {result['seeds']}, ± is half the distance between the lowest and "
            "the highest. Adapters act on the last token only.",
            "",
            f"Batches of {first}: both halves at once are a combination that training never saw.",
            "",
            outcome_table(result, first),
            "",
            f"Batches of {second}, in thirds:",
            "",
            outcome_table(result, second),
            "",
            *(rates if result["validation"] else []),
            f"Largest differences, of what has to be equal: {checks}.",
            "",
            "What the adapters did to the last token after each layer, mean over the test part (first table's run, "
            "first seed): relative change of magnitude, and the cosine of the angle.",
            "",
            measures_table(result, "magnitude_change", 3),
            "",
            measures_table(result, "angular_displacement", 3),
        ]
    )


def plot(result: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = {"none": "#9a9a9a", "A's half": "#3182bd", "B's half": "#e6550d", "both halves": "#31a354"}
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.8), layout="constrained")
    panels = (("spearman", "task A: rating, Spearman"), ("accuracy", "task B: origin, accuracy"))
    for panel, (measure, title) in zip(axes, panels, strict=False):
        for place, uses in enumerate(result["mixes"].values()):
            for k, (use, scores) in enumerate(uses.items()):
                values = [s[measure] for s in scores]
                mean = statistics.mean(values)
                spread = [[mean - min(values)], [max(values) - mean]]
                panel.errorbar(place + 0.15 * (k - 1.5), mean, yerr=spread, fmt="o", capsize=2, color=colours[use])
        panel.axhline(result["frozen"][measure], color="#9a9a9a", lw=1, ls="--")
        panel.set_xticks(range(len(result["mixes"])), [mix.replace(", ", ",\n") for mix in result["mixes"]], fontsize=8)
        panel.set_xlim(-0.6, len(result["mixes"]) - 0.4)
        panel.set_title(f"{title} (dashed: frozen)", fontsize=9)
    panels = (("magnitude_change", "change of magnitude"), ("angular_displacement", "cosine to the base"))
    for panel, (measure, title) in zip(axes[2:], panels, strict=True):
        for use, measures in result["measures"].items():
            panel.plot(measures[measure], "o-", ms=4, color=colours[use])
        panel.set_xlabel("layer")
        panel.set_title(f"last token: {title}", fontsize=9)
    for panel in axes:
        panel.grid(axis="y", lw=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    handles = [plt.Line2D([], [], marker="o", ls="", color=colour, label=use) for use, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    show("composition", text, RESULTS)
