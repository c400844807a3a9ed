"""From the recorded results to tables and a plot: python -m examples.sentiment.report [results.json] [--readme]."""

import statistics
from pathlib import Path

from benchmarks.report.tables import markdown
from examples.reporting import mean_and_spread, show

from .train import BATCH

COLOURS = ["#9a9a9a", "#08519c", "#3182bd", "#9ecae1", "#e6550d", "#756bb1", "#31a354"]
RESULTS = Path(__file__).parent / "results"


def quality_table(result: dict, measure: str) -> str:
    domains = list(result["sizes"])
    rows = []
    for name, m in result["methods"].items():
        per_domain = [[score[measure] for score in m["domains"][d]] for d in domains]
        mean = statistics.mean(statistics.mean(values) for values in per_domain)
        rows.append([name, *map(mean_and_spread, per_domain), f"{mean:.3f}"])
    return markdown([measure, *domains, "mean"], rows)


def cost_table(result: dict) -> str:
    rows = []
    for name, m in result["methods"].items():
        if not m["parameters"]:
            rows.append([name, "0", "", "", ""])
            continue
        peak = "" if m["peak_mib"] is None else f"{m['peak_mib']:.0f}"
        seconds = "" if m["seconds"] is None else f"{m['seconds']:.1f}"
        rows.append([name, f"{m['parameters']:,}", seconds, peak, f"{m['rate']:g}"])
    return markdown(["", "parameters", "seconds", "peak MiB", "learning rate"], rows)


def step_table(result: dict) -> str:
    theirs = result["step"]["RoAd1, PEFT's own code"]["milliseconds"]
    rows = [
        [way, f"{s['milliseconds']:.0f}", f"{s['milliseconds'] / theirs:.2f} x", f"{s['kept_mib']:.0f}"]
        for way, s in result["step"].items()
    ]
    return markdown(["", "ms", "of PEFT's RoAd1", "kept MiB"], rows)


def serving_table(result: dict) -> str:
    serving = result["serving"]
    alone = serving["ways"]["one by one"]["milliseconds"]
    rows = [
        [way, f"{w['milliseconds']:.0f}", f"{alone / w['milliseconds']:.1f} x", f"{w['difference']:.1e}"]
        for way, w in serving["ways"].items()
    ]
    count = sum(serving["requests"].values())
    return markdown([f"{count} requests", "ms", "faster", "largest difference of a rating from alone"], rows)


def text(result: dict) -> str:
    m, serving, train = result["machine"], result["serving"], next(iter(result["sizes"].values()))[0]
    sizes = ", ".join(f"{d} {' / '.join(map(str, s))}" for d, s in result["sizes"].items())
    chosen = " and ".join(result["rate_domains"])
    rates = (
        f"chosen on the validation parts of {chosen}" if chosen else "not chosen in this run: the middle of its list"
    )
    requests = ", ".join(f"{n} {name}" for name, n in serving["requests"].items())
    return "\n".join(
        [
            f"{m['processor']}, {m['threads']} threads, torch {m['torch']}; {result['minutes']:.0f} minutes in all. "
            f"Snippets to train, choose and test on: {sizes}. Seeds: {result['seeds']}; ± is half the distance between "
            "the lowest and the highest. Each method sees each snippet once.",
            "",
            "Held-out agreement with the human ratings, Spearman's rank correlation:",
            "",
            quality_table(result, "spearman"),
            "",
            "Pearson's correlation:",
            "",
            quality_table(result, "pearson"),
            "",
            "Right signs, of the snippets rated at least 0.5 away from neutral:",
            "",
            quality_table(result, "sign"),
            "",
            f"Cost of one run of {train} snippets: adapter parameters (the head has 385 more), median seconds and the "
            f"highest rise of the process's resident memory. Learning rate: {rates}.{_later(result)}",
            "",
            cost_table(result),
            "",
            f"Forward and backward of one batch ({BATCH} long texts), interleaved: median time, and what the forward "
            "pass keeps for the backward pass.",
            "",
            step_table(result),
            "",
            f"One mixed batch of {requests}. Each request against itself alone, without padding, and the time of "
            f"all of them (ratings reach {serving['largest_rating']:.1f}; leaving the adapters off would change one by "
            f"{serving['without_adapters']:.2f}):",
            "",
            serving_table(result),
        ]
    )


def _later(result: dict) -> str:
    names = " and ".join(name for name, m in result["methods"].items() if m["parameters"] and m["seconds"] is None)
    return f" {names} ran later, with the same seeds and data, on a machine too busy to time it." if names else ""


def plot(result: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    methods, domains = result["methods"], list(result["sizes"])
    colours = dict(zip(methods, COLOURS, strict=False))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(2, 1), layout="constrained")
    for k, (name, m) in enumerate(methods.items()):
        at = [d + 0.13 * (k - (len(methods) - 1) / 2) for d in range(len(domains))]
        scores = [[s["spearman"] for s in m["domains"][d]] for d in domains]
        means = [statistics.mean(s) for s in scores]
        low, high = ([abs(f(s) - mean) for s, mean in zip(scores, means, strict=True)] for f in (min, max))
        left.errorbar(at, means, yerr=[low, high], fmt="o", ms=5, capsize=2, color=colours[name], label=name)
        if m["parameters"]:
            right.plot(m["parameters"], statistics.mean(means), "o", ms=7, color=colours[name])
            right.annotate(
                name, (m["parameters"], statistics.mean(means)), xytext=(6, 5), textcoords="offset points", fontsize=9
            )
        else:
            right.axhline(statistics.mean(means), color=colours[name], lw=1, ls="--")
    left.set_xticks(range(len(domains)), domains)
    left.set_ylabel("Spearman's correlation with human ratings")
    left.set_title("held-out snippets; bars: lowest to highest seed", fontsize=10)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(methods), frameon=False)
    right.set_xscale("log")
    right.margins(x=0.25, y=0.2)
    right.set_xlabel("adapter parameters")
    right.set_title("mean of the four domains (dashed: frozen)", fontsize=10)
    for axes in (left, right):
        axes.grid(axis="y", lw=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    show("sentiment", text, RESULTS)
