"""make gpu-check without a GPU: whatever a step does, the others run; which tests it runs; what it concludes."""

import sys
import time
from pathlib import Path

import check
import pytest
from steps import Runner, Step, judge_pytest, judge_sanitizer


@pytest.fixture
def runner(tmp_path):
    return Runner(tmp_path, tmp_path, {}, seconds=60)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_judge_that_fails_fails_its_step_only(runner):
    def judge(step, status, output):
        raise ValueError("no number")

    steps = [Step("bad", python("print('{')"), judge=judge), Step("good", python(""))]
    runner.run(steps, 2)
    assert [s.status for s in steps] == ["FAILED", "ok"]
    assert "ValueError" in steps[0].detail and "no number" in steps[0].detail


def test_a_step_ends_with_its_children(tmp_path):
    """By its limit or by itself, it leaves no process behind that holds the GPU."""
    runner = Runner(tmp_path, tmp_path, {}, seconds=60, least=0)
    late = tmp_path / "late"
    child = f"import time; time.sleep(0.7); open({str(late)!r}, 'w')"
    steps = [
        Step("hangs", python("import time; time.sleep(60)"), limit=2),  # longer than the child would take
        Step("leaves a child", python(f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}])")),
        Step("dies", python("import os; os.abort()")),
    ]
    began = time.monotonic()
    runner.run(steps, 3)
    assert time.monotonic() - began < 20
    assert [s.status for s in steps] == ["FAILED", "ok", "FAILED"]
    assert steps[0].detail.startswith("stopped after")
    assert not late.exists()


def test_no_time_left(tmp_path):
    runner, tested, measured = Runner(tmp_path, tmp_path, {}, seconds=10), Step("t", python("")), Step("m", python(""))
    runner.run([tested], reserve=8)
    runner.deadline = time.monotonic()
    runner.run([measured])
    assert (tested.status, measured.status) == ("FAILED", "left out")


def test_verdict_on_pytest(tmp_path):
    report = tmp_path / "r.xml"
    report.write_text(
        '<testsuites><testsuite><testcase name="a"/><testcase name="b"><failure message="one\ntwo"/></testcase>'
        '<testcase name="c"><skipped/></testcase></testsuite></testsuites>'
    )
    step = Step("s", None)
    judge_pytest(report)(step, 1, "")
    assert step.detail == "1 passed, 1 failed, 1 skipped" and step.failures[0].startswith("b: one")


SANITIZER = {
    "clean": ("=========  COMPUTE-SANITIZER\n880 calls of cuda\n========= ERROR SUMMARY: 0 errors\n", 0, "ok"),
    "ours": (
        "880 calls of cuda\n========= Invalid __global__ read of size 16 bytes\n"
        "=========     at void road::cuda::rotate_kernel<float>(road::Problem)+0x10\n"
        "========= ERROR SUMMARY: 1 error\n",
        86,
        "FAILED",
    ),
    "torch's": (
        "880 calls of cuda\n========= Uninitialized __global__ memory read of size 8 bytes\n"
        "=========     at void at::native::bitonicSortKVInPlace<2>(long)+0x10\n========= ERROR SUMMARY: 2 errors\n",
        86,
        "ok",
    ),
    "races": ("880 calls of cuda\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", 0, "ok"),
    "no calls": ("========= Target application returned an error\n========= ERROR SUMMARY: 0 errors\n", 1, "FAILED"),
}


@pytest.mark.parametrize(("output", "status", "want"), SANITIZER.values(), ids=SANITIZER)
def test_verdicts_on_compute_sanitizer(output, status, want):
    step = Step("s", None)
    judge_sanitizer(step, status, output)
    assert step.status == want


def test_every_folder_of_tests_is_on_the_device_or_is_not():
    here = Path(check.__file__).parents[1]
    folders = {path.name for path in here.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {*check.ON_DEVICE, *check.NOT_ON_DEVICE, "gpu"}


def test_every_file_is_tested_and_what_takes_long_comes_first():
    steps = check.longest_first(check.test_steps(cuda=True) + check.sanitizer_steps(cuda=True))
    names = [s.name for s in steps]
    assert len(set(names)) == len(names)
    assert "sanitizer" in names[0] and "[triton]" not in names[-1]
    tested = {n.split()[0] for n in names}
    here = Path(check.__file__).parents[1]
    wanted = {path for folder in (*check.ON_DEVICE, "gpu") for path in (here / folder).glob("test_*.py")}
    assert {str(path.relative_to(here)) for path in wanted} <= tested
    assert {*check.PARTS, *check.REHEARSED, *check.ON_THE_CPU_TOO} <= tested
    for n in names:  # all parts of a file are there
        if " 1/" in n:
            count = int(n.rpartition("/")[2])
            assert all(f"{n[: n.rindex(' ')]} {k}/{count}" in names for k in range(1, count + 1))
