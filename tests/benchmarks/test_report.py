"""Tables and plots are made from recorded rows, every point appears, and what speaks against us is said."""

import re

import pytest

from benchmarks.harness import record
from benchmarks.harness.record import PLAIN
from benchmarks.report import __main__ as report
from benchmarks.report import cost_plot, readme, tables, wins

OURS, BMM, LOOP = "RoAd, road_kernels cpu", "LoRA, bmm", "LoRA, one by one"


def row(provider, us, low=None, high=None, base=100.0, **axes):
    """As harness.measure makes it; a provider without ``us`` was timed eagerly only."""
    found = {"phase": "decode", "requests": 1, "tokens": 1, "rank": 8, "mix": "different", "resident": 64}
    found |= {"dim_in": 128, "dim_out": 256, "dtype": "float32"} | axes
    ratios = {
        "overhead": us / base - 1,
        "overhead_p20": (low or us) / base - 1,
        "overhead_p80": (high or us) / base - 1,
    }
    times = {"us": us, "us_p20": low or us, "us_p80": high or us}
    eager = {f"eager_{k}": None for k in (*times, *ratios)}
    if provider == LOOP:
        eager, times = {f"eager_{k}": v for k, v in (times | ratios).items()}, dict.fromkeys(times)
        ratios = dict.fromkeys(ratios)
    family = provider.split(",")[0] if "," in provider else "none"
    found |= {"provider": provider, "family": family, "ours": provider == OURS, "output": "fresh"}
    found |= {"resident_bytes": {"RoAd": 64 * 1024, "LoRA": 64 * 8192}.get(family, 0), "percent_of_clone": 50.0}
    return found | times | eager | ratios


ROWS = [
    *(row(p, us) for p, us in ((PLAIN, 100.0), (OURS, 105.0), (BMM, 130.0), (LOOP, 190.0))),
    *(row(p, us, requests=4) for p, us in ((PLAIN, 100.0), (OURS, 110.0))),
    row(BMM, 108.0, 107.0, 109.0, requests=4),
    *(row(p, us, rank=64) for p, us in ((PLAIN, 100.0), (OURS, 110.0))),
    row(BMM, 109.0, 100.0, 120.0, rank=64),
    *(row(p, us, phase="prefill", dtype="bfloat16") for p, us in ((PLAIN, 100.0), (OURS, 101.0))),
]
MACHINE = {"processor": "Some CPU", "threads": 2, "isa": "avx2", "torch": "2.13", "triton": None, "commit": "abc1234"}
RESULT = {"benchmark": "layer", "grid": "default", "left_out": ["rank 9: too large"], "machine": MACHINE, "rows": ROWS}


def test_every_point_is_in_a_table_and_providers_are_its_rows():
    found = tables.tables_along("layer", ROWS, tables.overhead_cell)
    text = "\n".join(f"{title}\n{table}" for title, table in found)
    assert [title.split(",")[0] for title, _ in found] == ["phase decode", "phase decode", "phase prefill"]
    for cell in (
        "+5 % (+5 to +5)",
        "+30 %",
        "+8 % (+7 to +9)",
        "+9 % (+0 to +20)",
        "+1 %",
        "+90 % (+90 to +90) (eager)",
    ):
        assert cell in text, cell
    assert found[0][1].splitlines()[0] == "| requests | 1 | 4 |"
    assert found[0][1].splitlines()[2] == "| no adapter | 100 us | 100 us |"
    assert found[0][1].splitlines()[3].startswith(f"| **{OURS}** |")


def test_wins_of_baselines_are_found_clear_and_within_the_spread():
    count, clear, unclear = wins.baseline_wins("layer", ROWS)
    assert count == 4
    (line,) = clear
    assert "requests 4" in line and "LoRA, bmm (1.8 % less time)" in line
    (line,) = unclear
    assert "rank 64" in line and "LoRA, bmm (0.9 % less time)" in line
    sentence = wins.wins_sentence("layer", ROWS)
    assert sentence.startswith("Where a baseline wins: in 1 of the 4 cases measured: *phase decode, requests 4")
    assert sentence.endswith("In 1 more its median is lower within the spread.")
    assert "in none of the 1 cases" in wins.wins_sentence("layer", ROWS[:4])


def test_an_eager_baseline_is_compared_with_our_eager_time():
    rows = [row(OURS, 105.0) | {"eager_us": 300.0, "eager_us_p20": 300.0, "eager_us_p80": 300.0}, row(LOOP, 200.0)]
    assert len(wins.baseline_wins("layer", rows)[1]) == 1


def test_short_table_has_decode_and_prefill_and_names_the_machine():
    text = readme.short_layer(RESULT)
    assert "Some CPU, 2 threads, avx2, torch 2.13, commit abc1234." in text
    assert "| requests, each its own adapter | decode, 1 | decode, 4 | prefill, 1 |" in text
    assert f"| **{OURS}** | +5 % | +10 % | +1 % |" in text
    assert "Where a baseline wins" in text


def test_a_column_of_noise_is_left_out_and_named():
    noisy = [row(OURS, 90.0, requests=4) if r["requests"] == 4 and r["ours"] else r for r in ROWS]
    text = readme.short_layer(RESULT | {"rows": noisy})
    assert "| requests, each its own adapter | decode, 1 | prefill, 1 |" in text
    assert "Left out, because the layer was slower without an adapter: decode, 4." in text
    assert "Left out" not in readme.short_layer(RESULT)


def test_the_table_of_readme_has_the_providers_that_it_names():
    text = readme.short_layer(RESULT, (PLAIN, OURS))
    assert OURS in text and BMM not in text and "Where a baseline wins" not in text


GPU = MACHINE | {"gpu": "NVIDIA H9 9GB", "driver_version": "1", "clocks_sm": "1 MHz", "clocks_max_sm": "2 MHz"}


def test_parts_of_a_gpu_come_from_its_own_files(tmp_path):
    names = ("LoRA, bmm, weights in place", "IA3, vectors gathered in the call", "RoAd, road_kernels cuda")
    rows = [row(n, 105.0, requests=k, phase=p) for n in names for k in (1, 4) for p in ("decode", "prefill")]
    works = {"forward, 16384 x 4096, group_size 64, road_1, tables": ("percent_of_copy", 99.6)}
    works |= {"backward, 16384 x 4096, group_size 64, road_1": ("percent_of_copy", 90.4)}
    works |= {"forward and backward, 16384 x 4096": ("speedup", 16.9)}
    bars = [
        {"work": w, "backend": "cuda", "column": c, "measured": v, "required": 1, "at_least": True, "met": True}
        for w, (c, v) in works.items()
    ]
    layer = RESULT | {"machine": GPU, "rows": [row(PLAIN, 100.0), *rows]}
    fused = {"the neighbour alone": 66.5, "64 requests": 81.83, "rotation, then neighbour": None}
    fused = [{"work": "rotate_rope, 8 x 64, cuda", "provider": name, "us": us} for name, us in fused.items()]
    measured = {"gpu_bars_met": {"machine": GPU, "bars": bars}, "gpu_bars": RESULT | {"machine": GPU, "rows": fused}}
    parts = readme.parts_of({tmp_path / "nvidia-h9": {"layer": layer, **measured}})
    assert parts["fused"].endswith("| `rotate_rope`, 8 x 64, cuda | 66.5 | 81.8 |  |")
    assert 'src="benchmarks/results/nvidia-h9/cost.png"' in parts["figure"]
    assert "On an H9 at commit abc1234" in parts["headline"] and "100 % of the speed" in parts["headline"]
    assert "| RoAd, road_kernels cuda |" in parts["table"]
    assert cost_plot.cost(layer) is not None
    assert cost_plot.cost(RESULT) is None  # no such methods there


def test_every_marker_of_the_pages_is_filled():
    found = report.collect(record.RESULTS)
    parts, root = readme.parts_of(found), report.ROOT
    marked = {name: page for page in report.PAGES for name in re.findall(r"<!-- (\w+) -->", (root / page).read_text())}
    assert marked.keys() == parts.keys()
    for page in report.PAGES:
        text = (root / page).read_text()
        assert readme.fill(text, parts) == text, f"{page}: python -m benchmarks.report --readme"


def test_quick_runs_are_marked_as_placeholders():
    assert "placeholders" in tables.machine_line(RESULT | {"grid": "quick"})
    assert "placeholders" not in tables.machine_line(RESULT)


def test_report_writes_page_and_plots(tmp_path):
    pytest.importorskip("matplotlib", reason="the plots need matplotlib")
    for name in ("layer", "dispatch"):
        rows = ROWS if name == "layer" else [{"mode": "records", "provider": "x + x", "ours": False} | TIMES]
        record.save(
            name, rows, root=tmp_path / "results", found=MACHINE, grid="default", left_out=["rank 9: too large"]
        )
    report.main(["--results", str(tmp_path / "results")])
    page = (tmp_path / "RESULTS.md").read_text()
    assert "## some-cpu" in page and "Not measured: rank 9: too large." in page
    assert "| x + x | 1.5 (1.0 to 2.0) |" in page
    for name in ("overhead.png", "resident.png"):
        assert f"(results/some-cpu/{name})" in page
        assert (tmp_path / "results/some-cpu" / name).stat().st_size > 10_000


TIMES = {"us": 1.5, "us_p20": 1.0, "us_p80": 2.0}


def test_marked_parts_are_replaced_and_nothing_else(capsys):
    text = "before\n<!-- a -->\nold\n<!-- /a -->\nafter"
    assert readme.into(text, "a", "new\n") == "before\n<!-- a -->\nnew\n<!-- /a -->\nafter"
    assert readme.into(text, "b", "new") == text
    assert "no <!-- b -->" in capsys.readouterr().out
