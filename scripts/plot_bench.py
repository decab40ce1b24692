#!/usr/bin/env python3
"""Draws the results of `phi bench -o json`, and of llama-bench -o json, whose fields have the same names.

    phi bench --type Q4_0,Q4_K_M,Q8_0 -o json > phi.json
    python scripts/plot_bench.py phi.json [llama.json …] [--out FOLDER]

Writes speed-by-type.svg (a bar a file and model, for prompts and for generation) and speed-by-context.svg (generation
and prompts by the depth of the context), each only if there is something to draw. Results of a file are labelled with its
name. Needs matplotlib.
"""
import argparse
import json
import re
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt


def read(path):
    """The tests of a file, each with the label of the file; JSON lines will do too."""
    text = path.read_text()
    try:
        rows = json.loads(text)
    except json.JSONDecodeError:
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    return [{"label": path.stem, **row, "model_type": name(row["model_type"])} for row in rows]


def name(model):
    """The type alone, the same for both programs: llama-bench says "phi3 3B Q4_K - Medium" and "IQ4_XS - 4.25 bpw"."""
    found = re.search(r"\b(I?Q|TQ|MXFP|NVFP|B?F)[0-9]\S*( - (Small|Medium|Large))?", model)
    if not found:
        return model
    kind_of, size = found[0].split(" - ")[0], found[3]
    # There is one Q2_K only, whatever llama-bench calls it.
    return f"{kind_of}_{size[0]}" if size and kind_of != "Q2_K" else kind_of


def kind(row):
    """ "prompt" or "generation"; None for tests of both, or of several sequences at once."""
    if row.get("n_parallel", 1) != 1:
        return None
    return {(True, False): "prompt", (False, True): "generation"}.get((row["n_prompt"] > 0, row["n_gen"] > 0))


def by_type(rows, folder):
    rows = [row for row in rows if row["n_depth"] == 0 and kind(row)]
    models = list(dict.fromkeys(row["model_type"] for row in rows))
    labels = list(dict.fromkeys(row["label"] for row in rows))
    if not models:
        return
    figure, panels = plt.subplots(1, 2, figsize=(11, 1 + 0.5 * len(models) * max(1, len(labels) / 2)), sharey=True, layout="constrained")
    for panel, what in zip(panels, ("prompt", "generation")):
        height = 0.8 / len(labels)
        for i, label in enumerate(labels):
            best = defaultdict(lambda: (0.0, 0.0))
            for row in rows:
                if row["label"] == label and kind(row) == what:
                    best[row["model_type"]] = max(best[row["model_type"]], (row["avg_ts"], row["stddev_ts"]))
            places = [place + i * height for place in range(len(models))]
            speeds, errors = zip(*(best[model] for model in models))
            bars = panel.barh(places, speeds, height * 0.9, xerr=errors, label=label)
            panel.bar_label(bars, fmt="%.1f", padding=3)
        panel.set_yticks([place + 0.4 - height / 2 for place in range(len(models))], models)
        panel.set_xlabel(f"{what}, tokens/s")
        panel.margins(x=0.15)
    panels[0].invert_yaxis()
    if len(labels) > 1:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(labels))
    save(figure, folder / "speed-by-type.svg")


def by_context(rows, folder):
    lines = defaultdict(list)
    for row in rows:
        if kind(row):
            size = max(row["n_prompt"], row["n_gen"])
            lines[kind(row), row["label"], row["model_type"], row.get("type_k", ""), size].append(row)
    lines = {key: rows for key, rows in lines.items() if len({row["n_depth"] for row in rows}) > 1}
    if not lines:
        return
    drawn = [what for what in ("prompt", "generation") if any(key[0] == what for key in lines)]
    figure, panels = plt.subplots(1, len(drawn), figsize=(5.5 * len(drawn), 4), layout="constrained", squeeze=False)
    for panel, what in zip(panels[0], drawn):
        for (kind_of, label, model, cache, size), rows in lines.items():
            if kind_of == what:
                rows = sorted(rows, key=lambda row: row["n_depth"])
                name = f"{label}: {model}, {cache} cache, {size} tokens"
                depths, speeds = [row["n_depth"] for row in rows], [row["avg_ts"] for row in rows]
                panel.errorbar(depths, speeds, [row["stddev_ts"] for row in rows], marker="o", label=name)
        panel.set_xlabel("tokens in the context")
        panel.set_ylabel(f"{what}, tokens/s")
        panel.set_ylim(bottom=0)
        panel.legend(fontsize="small")
    save(figure, folder / "speed-by-context.svg")


def save(figure, path):
    figure.savefig(path)
    plt.close(figure)
    print(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", nargs="+", type=Path, help="files of phi bench -o json or llama-bench -o json")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for the pictures")
    arguments = parser.parse_args()
    rows = [row for path in arguments.results for row in read(path)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    by_type(rows, arguments.out)
    by_context(rows, arguments.out)


if __name__ == "__main__":
    main()
