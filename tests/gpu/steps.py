"""Steps of make gpu-check: commands, each with a log, a time limit and a verdict."""

import contextlib
import os
import re
import signal
import subprocess
import time
import xml.etree.ElementTree as xml
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Step:
    name: str
    command: Sequence[str] | None  # None: nothing to run, ``detail`` says why
    limit: float = 150.0  # seconds
    environment: dict[str, str] = field(default_factory=dict)
    judge: Callable[["Step", int, str], None] | None = None  # step, exit status, output: sets status and detail
    status: str = "left out"  # "ok", "FAILED", "left out", "replaced" by another way
    seconds: float = 0.0
    detail: str = ""
    failures: list[str] = field(default_factory=list)

    def record(self) -> dict:
        kept = ("name", "status", "detail", "failures")
        return {key: getattr(self, key) for key in kept} | {"seconds": round(self.seconds, 1)}


class Runner:
    """Runs steps, several at a time if asked to, and none after the deadline. Logs go to ``folder``."""

    def __init__(self, root: Path, folder: Path, environment: dict[str, str], seconds: float, least: float = 5):
        self.root, self.folder, self.environment = root, folder, environment
        self.deadline = time.monotonic() + seconds
        self.least = least  # seconds: with less time left, a step is not worth starting
        self.done: list[Step] = []

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def run(self, steps: Sequence[Step], at_once: int = 1, reserve: float = 0) -> None:
        """Leaves ``reserve`` seconds for later steps."""
        self.done += steps
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda step: self._run(step, reserve), steps))

    def _run(self, step: Step, reserve: float) -> None:
        if step.command is None:
            return
        limit = min(step.limit, self.left() - reserve)
        if limit < self.least:
            # A benchmark is left out; a test that did not run has not passed.
            step.status, step.detail = "FAILED" if reserve else "left out", "no time left"
            return
        start = time.monotonic()
        log = self.folder / f"{re.sub(r'[^A-Za-z0-9]+', '_', step.name).strip('_')}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                step.command,
                cwd=self.root,
                env={**os.environ, **self.environment, **step.environment},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that a step that hangs can be killed with all its children
            )
            try:
                status = process.wait(limit)
            except subprocess.TimeoutExpired:
                status = None
            end(process)
        step.seconds = time.monotonic() - start
        output = log.read_text(errors="replace")
        if status is None:
            step.status, step.detail = "FAILED", f"stopped after {limit:.0f} s; {last_line(output)}"
        else:
            step.status = "ok" if status == 0 else "FAILED"
            step.detail = last_line(output) if status else ""
        if step.judge:
            try:
                step.judge(step, -1 if status is None else status, output)
            except Exception as error:  # must not keep the other steps from being judged
                step.status, step.detail = "FAILED", f"{type(error).__name__} in what it wrote: {error}"[:200]
        print(f"{step.status:8} {step.seconds:6.1f} s  {step.name}  {step.detail[:120]}", flush=True)


def end(process: subprocess.Popen) -> None:
    """Kills its children with it, also those that it left behind when it ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # the driver may not let it end
        process.wait(10)


def last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no output"


def judge_pytest(report: Path) -> Callable[[Step, int, str], None]:
    """Counts from pytest's XML, and the failed tests with the first line of their messages."""

    def judge(step: Step, status: int, output: str) -> None:
        if status == 5:  # nothing was selected
            step.status, step.detail = "ok", "no tests"
            return
        if not report.exists():  # it crashed or was stopped: the log has the tests up to then
            step.status = "FAILED"
            step.detail = step.detail or last_line(output)
            return
        counts = {"passed": 0, "failed": 0, "skipped": 0}
        for case in xml.parse(report).getroot().iter("testcase"):
            bad = [child for child in case if child.tag in ("failure", "error")]
            kind = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
            counts[kind] += 1
            if bad:
                said = (bad[0].get("message") or "").strip().splitlines()
                step.failures.append(f"{case.get('name')}: {said[0][:160] if said else ''}")
        step.detail = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)

    return judge


OURS = re.compile(r"\bat .*\b(road::cuda::|(rotate|backward|reduce|merge|tables|sort_few|count|place)\w*_kernel)")


def judge_sanitizer(step: Step, status: int, output: str) -> None:
    """By compute-sanitizer's summary, if all calls were made. Errors in torch's kernels are reported, not failed."""
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", output)
    calls = re.findall(r"\d+ calls of .*", output)
    reports = [line.strip("= \n")[:200] for line in output.splitlines() if line.startswith("=========")]
    ours = [line for line in reports if OURS.search(line) and "Host Frame" not in line]
    step.detail = "; ".join([*calls[-1:], *summaries[-1:]]) or last_line(output)
    clean = summaries and re.search(r"SUMMARY: 0 (errors|hazards)", summaries[-1])
    if calls and summaries and not clean and not ours:
        step.detail += ", none in kernels of ours"
    step.status = "ok" if calls and summaries and not ours and (status == 0 or not clean) else "FAILED"
    if step.status == "FAILED":
        step.failures = ours[:5] or reports[:8]
