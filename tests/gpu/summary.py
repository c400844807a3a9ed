"""What make gpu-check reports at its end: a table of steps, speeds against their targets, and the same as JSON."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

SMI = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw")
HOST_TARGETS = {  # host time over that of x + x in the same mode: (mode, provider) of benchmarks/dispatch.py
    ("no gradients", "road_apply, cuda"): 1.9,
    ("records", "road_apply, cuda"): 2.2,
    ("forward and backward", "road_apply, cuda"): 1.6,
    ("no gradients", "road_apply, triton"): 2.0,
}


def said_by(*command: str, **kw) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, **kw)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def state_of_gpu() -> dict:
    line = said_by("nvidia-smi", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader").splitlines()
    return dict(zip(SMI, (v.strip() for v in line[0].split(",")), strict=False)) if line else {}


def machine(runner, options) -> dict:
    """The machine as the benchmarks record it, and nvcc."""
    environment = {**os.environ, **runner.environment}
    code = f"import json; from benchmarks.harness import record; print(json.dumps(record.machine({options.device!r})))"
    said = said_by(sys.executable, "-c", code, env=environment, cwd=runner.root)
    found = json.loads(said.splitlines()[-1]) if said else {"processor": platform.processor()}
    nvcc = re.search(r"V(\d+\.\d+\.\d+)", said_by(shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc", "--version"))
    return found | {"nvcc": nvcc and nvcc[1], "python": platform.python_version()}


def host_targets(folder: Path) -> list[dict]:
    path = next(folder.glob("*/dispatch.json"), None)
    rows = json.loads(path.read_text())["rows"] if path else []
    plain = {row["mode"]: row["us"] for row in rows if row["provider"] == "x + x"}
    common = {"column": "x of x + x on the host", "at_least": False}
    found = []
    for row in rows:
        most, base = HOST_TARGETS.get((row["mode"], row["provider"])), plain.get(row["mode"])
        if most and base and row["us"]:
            ratio = round(row["us"] / base, 2)
            named = {"work": row["mode"], "backend": row["provider"], "required": most, "measured": ratio}
            found.append(named | common | {"met": ratio <= most})
    return found


def targets(folder: Path) -> list[dict]:
    path = next(folder.glob("*/gpu_bars_met.json"), None)
    return (json.loads(path.read_text())["bars"] if path else []) + host_targets(folder)


def line_of(step) -> str:
    return f"{step.status:8} {step.seconds:6.1f} s  {step.name}  {step.detail}".rstrip()


def group_of(step) -> str:
    found = re.fullmatch(r"(\w+)/test_\w+\.py \[(\w+)\].*", step.name)
    return f"tests {'on the GPU only ' if found[1] == 'gpu' else ''}[{found[2]}]" if found else step.name


def grouped(steps) -> list[str]:
    """One line for all tests of a backend, and one for every step of them that failed."""
    lines, groups = [], {}
    for step in steps:
        groups.setdefault(group_of(step), []).append(step)
    for name, members in groups.items():
        if members[0].name == name:
            lines += map(line_of, members)
            continue
        counts = Counter()
        for step in members:
            for n, kind in re.findall(r"(\d+) (passed|failed|skipped)", step.detail):
                counts[kind] += int(n)
        good = all(step.status == "ok" for step in members)
        seconds = sum(step.seconds for step in members)
        said = ", ".join(f"{n} {kind}" for kind, n in counts.items())
        lines.append(f"{'ok' if good else 'FAILED':8} {seconds:6.1f} s  {name}, {len(members)} processes: {said}")
        lines += [f"    {line_of(step)}" for step in members if step.status != "ok"]
    return lines


def failures(steps, most: int) -> list[str]:
    lines = [f"{step.name}: {failure}" for step in steps for failure in step.failures]
    return [line[:220] for line in lines[:most]] + ([f"... {len(lines) - most} more"] if len(lines) > most else [])


def target_lines(found: list[dict]) -> list[str]:
    return [
        f"{'met' if b['met'] else 'MISSED':7} {b['backend']:8} {b['work']}: {b['column']} {b['measured']} "
        f"({'>=' if b['at_least'] else '<='} {b['required']})"
        for b in found
    ]


def write_summary(runner, work: Path, options, before: dict, seconds: float) -> int:
    """Prints the table, writes it and the JSON, packs results and logs. Returns 1 if a step failed."""
    found, results = targets(work / "results"), work / "results"
    failed = [step for step in runner.done if step.status == "FAILED"]
    about = machine(runner, options) | {"before": before, "after": state_of_gpu(), "seconds": round(seconds)}
    steps = [step.record() for step in runner.done]
    text = json.dumps({"machine": about, "failed": len(failed), "steps": steps, "bars": found}, indent=1) + "\n"

    head = f"{about.get('gpu', about['processor'])}, torch {about.get('torch')}, triton {about.get('triton')}, "
    head += f"nvcc {about['nvcc']}, driver {about.get('driver_version')}, commit {about.get('commit')}, {seconds:.0f} s"
    body = ["", "Steps", *grouped(runner.done), "", "Speeds", *target_lines(found)]
    bad = failures(runner.done, 40)
    body += ["", "Failures", *bad] if bad else []
    body += ["", f"{head}: {f'{len(failed)} steps FAILED' if failed else 'all steps ok'}"]
    print("\n".join(body), flush=True)

    folder = next((p for p in results.iterdir() if p.is_dir()), results / "unmeasured")
    folder.mkdir(exist_ok=True)
    (folder / "gpu_check.json").write_text(text)
    (folder / "gpu_check.txt").write_text("\n".join([*map(line_of, runner.done), *body]) + "\n")
    if options.results:
        options.results.mkdir(parents=True, exist_ok=True)
        for name in ("gpu_check.json", "gpu_check.txt"):
            shutil.copy(folder / name, options.results)
        for name in ("results", "logs"):
            with tarfile.open(options.results / f"{name}.tar.gz", "w:gz") as archive:
                archive.add(work / name, name)
    elif options.device == "cuda":
        shutil.copytree(folder, runner.root / "benchmarks" / "results" / folder.name, dirs_exist_ok=True)
    return 1 if failed else 0
