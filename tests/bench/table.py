#!/usr/bin/env python3
"""table.py WORK RUNS PLOT SERVER…: the figures of `compare`, whose runs are WORK/N/run-M.json."""
import json
import math
import os
import statistics
import sys
from xml.sax.saxutils import escape

work, runs, plot = sys.argv[1], int(sys.argv[2]), sys.argv[3]
names = [os.path.basename(server) for server in sys.argv[4:]]
KEYS = ["per_sec", "mb_per_sec", "p50_ms", "p99_ms", "cpu_us_per_op", "peak_rss_mb"]


def figures(server):
    """The median of each key, by workload."""
    rows = {}
    for run in range(1, runs + 1):
        with open(f"{work}/{server}/run-{run}.json") as file:
            for row in json.load(file)["rows"]:
                rows.setdefault((row["work"], row.get("variant") or ""), []).append(row)

    def median(all_runs, key):
        numbers = [row[key] for row in all_runs if row.get(key) is not None]
        return statistics.median(numbers) if numbers else None

    return {name: {key: median(rows_of, key) for key in KEYS} for name, rows_of in rows.items()}


def rate(row):
    by_bytes = row["mb_per_sec"] and row["mb_per_sec"] > 40 and row["per_sec"] < 10000
    return f"{row['mb_per_sec']:7.0f} MB/s" if by_bytes else f"{row['per_sec']:7.0f} /s  "


def shown(row):
    cpu, memory = row["cpu_us_per_op"] or 0, row["peak_rss_mb"] or 0
    return f"{rate(row)} {row['p50_ms']:8.3f} {row['p99_ms']:8.3f} {cpu:7.1f} us {memory:5.0f} MB"


tables = [figures(n) for n in range(len(names))]
works = [name for name in tables[0] if all(name in table for table in tables)]
if not works:
    sys.exit("the servers have no workload in common")


def ratios(name):
    last = tables[-1][name]["per_sec"]
    return [table[name]["per_sec"] / max(last, 1e-9) for table in tables[:-1]]


heads = [f"{name}:".ljust(12) + "rate   p50 ms   p99 ms     cpu/op     peak" for name in names]
print(f"{'work':22} " + " ".join(f"{head:54}" for head in heads) + f" ÷ {names[-1]}")
for name in works:
    cells = " ".join(f"{shown(table[name]):54}" for table in tables)
    print(f"{' '.join(name).strip():22} {cells} " + " ".join(f"{r:5.2f}" for r in ratios(name)))


def draw():
    """A bar for each ratio, on a logarithmic scale around 1."""
    bar, gap, left, width, reach = 14, 10, 190, 560, 3.0
    colours = ["#2563eb", "#d97706", "#059669", "#7c3aed"]
    step = bar * (len(names) - 1) + gap
    height = 70 + step * len(works)
    middle = left + width / 2
    at = lambda ratio: middle + max(-reach, min(reach, math.log2(ratio))) * width / 2 / reach
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 70}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for n, name in enumerate(names[:-1]):
        out.append(
            f'<text x="{left + 160 * n}" y="18" fill="{colours[n % 4]}">{escape(name)} ÷ '
            f"{escape(names[-1])}</text>"
        )
    for power in range(-3, 4):
        x, label = at(2.0**power), f"{2.0 ** power:g}"
        out.append(f'<line x1="{x:.1f}" y1="40" x2="{x:.1f}" y2="{height - 10}" stroke="#ddd"/>')
        out.append(f'<text x="{x:.1f}" y="36" text-anchor="middle" fill="#555">{label}</text>')
    for row, name in enumerate(works):
        top = 50 + row * step
        title = escape(" ".join(name).strip())
        out.append(f'<text x="{left - 8}" y="{top + 11}" text-anchor="end">{title}</text>')
        for n, ratio in enumerate(ratios(name)):
            x, y = at(max(ratio, 1e-9)), top + n * bar
            out.append(
                f'<rect x="{min(x, middle):.1f}" y="{y}" width="{abs(x - middle):.1f}" '
                f'height="{bar - 2}" fill="{colours[n % 4]}"/>'
            )
            out.append(f'<text x="{left + width + 8}" y="{y + 11}">{ratio:.2f}</text>')
    out.append(f'<line x1="{middle}" y1="40" x2="{middle}" y2="{height - 10}" stroke="#333"/></svg>')
    return "\n".join(out)


if plot:
    with open(plot, "w") as file:
        file.write(draw() + "\n")
    print(f"drawn: {plot}")
