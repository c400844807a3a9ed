"""What all plots share: the style, colours, and a figure that names its machine."""

from .tables import machine_line

OURS, ROAD, LORA, OTHER = "#b3001b", "#e8871e", "#1d4e89", "#7a7a7a"


def set_style() -> None:
    """The style of all plots, drawn without a display."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def new_figure(panels: int, result: dict, title: str, width: float):
    """(figure, its axes), side by side."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, panels, figsize=(width, 4.4), squeeze=False, layout="constrained")
    figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
    machine_note(figure, result)
    return figure, list(axes[0])


def plain_figure(panels: int, title: str):
    """(figure, its axes), one above the other, with room for labels on the right: legible at a third of its size."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(panels, 1, figsize=(7.4, 2.9 * panels), squeeze=False, layout="constrained")
    figure.suptitle(title, fontsize=14, fontweight="bold", x=0.01, ha="left")
    return figure, [axis for (axis,) in axes]


def machine_note(figure, result: dict) -> None:
    machine = machine_line(result).replace("**", "")
    figure.supxlabel(machine, fontsize=6.5, color=OTHER, x=0.01, ha="left")
