"""Draws what a bench found: `python charts.py RESULT FOLDER`, one PNG for each part that has something to draw.

Runs in an environment of its own, where matplotlib is and the project is not; so it knows nothing but the result's JSON.
"""

# mypy: disable-error-code="import-not-found, import-untyped, no-untyped-call, misc"

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

Found = Mapping[str, Any]
COLORS = {
    "agent": "#2563a8",
    "vantage6_node": "#d98324",
    "engine": "#6b7280",
    "engine_joining": "#6b7280",
    "docker_run": "#a8adb5",
    "by_hand": "#6b7280",
}
TITLES = {
    "agent": "our agent",
    "vantage6_node": "vantage6's own node",
    "engine": "bare engine",
    "engine_joining": "bare engine, joining",
    "docker_run": "docker run",
    "by_hand": "by hand",
}
MB = 1_000_000
PHASE_COLORS = ("#9cc3e6", "#2563a8")
WIDE, FLAT = (7.2, 3.2), (7.2, 2.6)


def empty(found: Found) -> None:
    """Draw the whole time of an empty run, each sample as a dot, and below it where ours goes."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(7.2, 4.6), height_ratios=(3, 1.6))
    _bars(above, found["seconds"], "Empty run: median, and every sample")
    reached = 0.0
    for number, (name, took) in enumerate(found["phases"].items()):
        below.barh(0, took, left=reached, color=PHASE_COLORS[number % 2])
        if took > 0.03:
            below.text(reached + took / 2, 0.55, name, rotation=18, ha="left", va="bottom", fontsize=6)
        reached += took
    below.set(yticks=[], ylim=(-0.5, 2.6), xlabel="seconds, our agent by phase")
    _plain(below)
    figure.tight_layout()


def average(found: Found) -> None:
    """Draw the federated average."""
    figure, axes = plt.subplots(figsize=FLAT)
    _bars(axes, found["seconds"], "Central average over three nodes: median, and every sample")
    figure.tight_layout()


def _bars(axes: Any, ways: Found, title: str) -> None:
    names = list(ways)[::-1]
    for place, name in enumerate(names):
        samples = ways[name]["samples"]
        axes.barh(place, ways[name]["median"], color=COLORS[name], height=0.6)
        axes.plot(samples, [place] * len(samples), "o", color="black", markersize=2.5, alpha=0.5)
        axes.text(max(samples), place, f"  {ways[name]['median']:.2f} s", va="center", fontsize=8)
    axes.set_yticks(range(len(names)), [TITLES[name] for name in names])
    axes.set(xlabel="seconds", xlim=(0, 1.15 * max(max(way["samples"]) for way in ways.values())))
    axes.set_title(title, fontsize=10, loc="left")
    _plain(axes)


def burst(found: Found) -> None:
    """Draw how many runs had ended after so many seconds."""
    figure, axes = plt.subplots(figsize=WIDE)
    for name, way in found["ways"].items():
        seconds, counts = zip(*way["curve"], strict=True)
        axes.plot(seconds, counts, color=COLORS[name], label=TITLES[name])
    axes.set(xlabel="seconds", ylabel="runs that ended", ylim=(0, None), xlim=(0, None))
    axes.set_title(f"Burst of {found['runs']} empty runs", fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=8)
    _plain(axes)
    figure.tight_layout()


def result(found: Found) -> None:
    """Draw time and memory over the size of a result."""
    _over_size(found, lambda row: row["plain_send"]["median"] + row["plain_encrypt"]["median"], "Results")


def input_(found: Found) -> None:
    """Draw time and memory over the size of an input."""
    _over_size(found, lambda row: row["plain_fetch"]["median"], "Inputs")


def _over_size(found: Found, by_hand: Callable[[Found], float], title: str) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=WIDE)
    for kind, style in (("plain", "-"), ("encrypted", "--")):
        sizes = [row["size"] / MB for row in found[kind]]
        ours = [row["seconds"]["median"] for row in found[kind]]
        left.plot(sizes, ours, style, marker="o", markersize=3, color=COLORS["agent"], label=f"ours, {kind}")
        others = [by_hand(row) for row in found[kind]]
        left.plot(
            sizes, others, style, marker="o", markersize=3, color=COLORS["by_hand"], label=f"by hand, {kind}"
        )
        memory = [max(row["memory"]["samples"]) for row in found[kind]]
        right.plot(sizes, memory, style, marker="o", markersize=3, color=COLORS["agent"], label=kind)
    left.set(xscale="log", yscale="log", xlabel="MB", ylabel="seconds")
    right.set(xscale="log", xlabel="MB", ylabel="MB above idle", ylim=(0, None))
    left.set_title(title, fontsize=10, loc="left")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=7)
        _plain(axes)
    figure.tight_layout()


def queue(found: Found) -> None:
    """Draw the time per run in each tenth of a long queue."""
    figure, axes = plt.subplots(figsize=FLAT)
    tenths = found["many"]["tenths"]
    axes.bar(range(1, len(tenths) + 1), tenths, color=COLORS["agent"])
    axes.axhline(found["few"]["per_run"]["median"], color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel=f"tenth of {found['many']['runs']:,} queued runs", ylabel="seconds per run")
    axes.set_title(f"Time per run; dotted: with {found['few']['runs']} queued", fontsize=10, loc="left")
    _plain(axes)
    figure.tight_layout()


def proxy(found: Found) -> None:
    """Draw the time of a call, direct and through the proxy."""
    figure, axes = plt.subplots(figsize=FLAT)
    places = range(len(found["rows"]))
    for shift, name, color in ((-0.2, "direct", COLORS["engine"]), (0.2, "proxy", COLORS["agent"])):
        times = [1000 * row[name]["median"] for row in found["rows"]]
        axes.bar([place + shift for place in places], times, 0.36, color=color, label=name)
    axes.set_xticks(list(places), [str(row["containers"]) for row in found["rows"]])
    axes.set(xlabel="containers that call", ylabel="ms, median of a call")
    axes.legend(frameon=False, fontsize=8)
    _plain(axes)
    figure.tight_layout()


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_size(8)
    axes.yaxis.label.set_size(8)


DRAWN: Mapping[str, Callable[[Found], None]] = {
    "empty": empty,
    "burst": burst,
    "average": average,
    "result": result,
    "input": input_,
    "queue": queue,
    "proxy": proxy,
}


def main(file: str, folder: str) -> None:
    """Draw every part of a result that can be drawn."""
    for name, found in json.loads(Path(file).read_text())["parts"].items():
        if name in DRAWN:
            DRAWN[name](found)
            # without the version of the library and the time, the same figures give the same file
            plt.savefig(Path(folder, f"{name}.png"), dpi=110, metadata={"Software": None})
            plt.close("all")


if __name__ == "__main__":
    main(*sys.argv[1:])
