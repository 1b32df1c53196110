"""Draws the pictures times.svg and idle.svg from results.json."""

import json
from statistics import median

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from figures import memory_kib, replacements_ms, startups_ms
from peers import HERE
from table import figure

OURS, THEIRS = "#0072b2", "#666666"

plt.rcParams.update(
    {
        "font.family": "sans-serif",
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.titlesize": 12,
        "axes.titlelocation": "left",
        # The fixed salt makes equal figures give equal files. "none" stores text as text, not as outlines of letters.
        "svg.hashsalt": "peers",
        "svg.fonttype": "none",
    }
)


def panel(axes: Axes, title: str, peers: dict, samples: dict[str, list[float]], absent: str) -> None:
    """Draws a dot at the median of each supervisor, and a line from the smallest to the largest value."""
    axes.set_title(title, pad=12)
    axes.set_yticks(range(len(peers)), list(peers))
    axes.set_ylim(len(peers) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    for row, name in enumerate(peers):
        values, color = samples[name], OURS if name.startswith("taskfork") else THEIRS
        if not values:
            note = {"xycoords": ("axes fraction", "data"), "va": "center", "color": THEIRS, "style": "italic"}
            axes.annotate(absent, (0.02, row), **note)
            continue
        middle = median(values)
        axes.plot([min(values), max(values)], [row, row], color=color, linewidth=2, alpha=0.4, solid_capstyle="butt")
        axes.plot(middle, row, "o", color=color, markersize=7)
        label = {"xytext": (8, 0), "textcoords": "offset points", "va": "center", "color": color}
        axes.annotate(figure(middle), (max(values), row), **label)


def logarithmic(axes: Axes, samples: dict[str, list[float]]) -> None:
    values = [value for some in samples.values() for value in some]
    axes.set_xscale("log")
    # Leaves room for the labels at the right of the lines.
    axes.set_xlim(min(values) / 1.5, max(values) * 3)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")


def picture(name: str) -> tuple:
    drawing, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    drawing.get_layout_engine().set(wspace=0.05)

    def save() -> None:
        drawing.savefig(HERE / name, metadata={"Date": None}, facecolor="white")
        print(HERE / name)

    return left, right, save


def draw_times(peers: dict) -> None:
    left, right, save = picture("times.svg")
    startup = {name: startups_ms(facts) for name, facts in peers.items()}
    replacement = {name: replacements_ms(facts) for name, facts in peers.items()}
    panel(left, "Four workers up, ms", peers, startup, "")
    panel(right, "Worker replaced after kill -9, ms", peers, replacement, "not replaced")
    logarithmic(left, startup)
    logarithmic(right, replacement)
    save()


def draw_idle(peers: dict) -> None:
    left, right, save = picture("idle.svg")
    memory = {name: [kib / 1024 for kib in memory_kib(facts, "all_pss")] for name, facts in peers.items()}
    idle = {name: [facts["idle"]] if "idle" in facts else [] for name, facts in peers.items()}
    wakeups = {name: [round(found["wakeups_per_s"], 2) for found in some] for name, some in idle.items()}
    panel(left, "Memory of parent and four workers (PSS), MiB", peers, memory, "")
    panel(right, "Wakeups of the idle parent per second", peers, wakeups, "")
    logarithmic(left, memory)
    right.set_xlim(-0.5, 1.15 * max(value for values in wakeups.values() for value in values) + 1)
    save()


def main() -> None:
    peers = json.loads((HERE / "results.json").read_text())["peers"]
    draw_times(peers)
    draw_idle(peers)


if __name__ == "__main__":
    main()
