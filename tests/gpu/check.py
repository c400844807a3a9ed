"""make gpu-check: builds, tests and measures on the GPU of this machine, and summarises the outcome.

    python3 tests/gpu/check.py [--seconds S] [--only WORD ...] [--results FOLDER] [--commit NAME] [--built]
    python3 tests/gpu/check.py --device cpu      a rehearsal without a GPU: every kind of step, on little work

Uses the Python, torch and nvcc that are installed, and no network; builds in build/gpu-check. Every step has a log and
a time limit of its own, and no step keeps later ones from running. The exit status is 1 if a test failed; a missed
target is reported and does not fail the run.
"""

import argparse
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from glob import glob
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS, ROOT = HERE.parent, HERE.parent.parent
sys.path.insert(0, str(HERE))

from steps import Runner, Step, judge_pytest, judge_sanitizer  # noqa: E402
from summary import said_by, state_of_gpu, write_summary  # noqa: E402

WORK = ROOT / "build" / "gpu-check"
SITE = WORK / "site"

# Folders of tests. Those in ON_DEVICE make their tensors on the device; tests marked cpu_only skip themselves there.
ON_DEVICE = ("ops", "serving", "integrations", "distributed", "backends")
NOT_ON_DEVICE = ("project", "benchmarks", "support", "cpp")
REHEARSED = ("ops/test_tables.py", "ops/test_layouts.py")  # with --device cpu
ON_THE_CPU_TOO = ("backends/test_choice.py", "backends/test_cpu_instruction_sets.py")
WORKERS = 15  # test processes at a time
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SWEEPS = {"gpu_targets": 80, "dispatch": 40, "single_op": 60, "layer": 60}  # seconds at most, the first ones first
FOR_BENCHMARKS = 150  # seconds that the tests leave for them
LIMIT = 240  # seconds of one test process
# The files that Triton takes minutes to compile for, and into how many processes each is split.
PARTS = {
    "ops/test_backward.py": 5,
    "ops/test_forward.py": 4,
    "ops/test_inplace.py": 3,
    "ops/test_determinism.py": 2,
    "ops/test_layouts.py": 2,
    "ops/test_fused_forward.py": 3,
    "ops/test_fused_backward.py": 2,
    "gpu/test_fused.py": 2,
    "gpu/test_training.py": 4,
    "gpu/test_launches.py": 2,
    "gpu/test_streams_and_graphs.py": 2,
}
# The processes of a file: their labels, and the --backend options of each.
BY_BACKEND = {"cuda": ("cuda", "none"), "triton": ("triton",), "python": ("python",)}
ONLY_ON_GPU = {"cuda": ("cuda", "python", "none"), "triton": ("triton",)}
WITHOUT_BACKEND = {"all": ("none",)}
TAKES_BACKEND = re.compile(r"def test_\w+\([^)]*\bbackend\b")


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def find_tool(name: str) -> str | None:
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda", *glob("/usr/local/cuda-*")]
    places = [os.path.join(home, part) for home in homes if home for part in ("bin", "compute-sanitizer")]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))


def build_steps(cuda: bool) -> list[Step]:
    """setup.py, which needs nothing but setuptools; then pip, in case that fails."""
    environment = {"ROAD_KERNELS_BUILD": "1", "ROAD_KERNELS_CUDA": "1" if cuda else "0"}
    environment["MAX_JOBS"] = str(os.cpu_count())
    if cuda and "TORCH_CUDA_ARCH_LIST" not in os.environ:  # for this GPU only, in a third of the time
        ask = "import torch; print('%d.%d' % torch.cuda.get_device_capability())"
        if arch := said_by(*python("-c", ask)):
            environment["TORCH_CUDA_ARCH_LIST"] = arch.splitlines()[-1]
    folders = ["--build-lib", str(SITE), "--build-temp", str(WORK / "objects")]
    pip = python("-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "--upgrade", "--target")
    steps = [
        Step("build: setup.py", python("setup.py", "-q", "build", *folders), 200, environment),
        Step("build: pip", [*pip, str(SITE), str(ROOT)], 200, environment),
    ]
    return steps


def judge_build(cuda: bool) -> Callable[[Step, int, str], None]:
    """Every package of the checkout must be in the build, and on a GPU every backend must be usable."""

    def judge(step: Step, status: int, output: str) -> None:
        want = {path.parent.relative_to(ROOT) for path in (ROOT / "road_kernels").rglob("__init__.py")}
        if missing := sorted(str(package) for package in want if not (SITE / package / "__init__.py").exists()):
            step.failures.append(f"not in the build, see pyproject.toml: {', '.join(missing)}")
        if status == 0:
            info, _ = json.JSONDecoder().raw_decode(output[output.index("{") :])
            step.detail = f"{info['build']}, torch {info['torch']}"
            needed = ("cuda", "triton", "python", "cpu") if cuda else ("python", "cpu")
            reasons = {name: info["backends"][name]["reason"] for name in needed}
            step.failures += [f"{name}: {reason}" for name, reason in reasons.items() if reason]
        step.status = "FAILED" if step.failures or status else "ok"

    return judge


def test_files(cuda: bool) -> list[Path]:
    files = [path for folder in ON_DEVICE for path in sorted((TESTS / folder).glob("test_*.py"))]
    return files if cuda else [TESTS / name for name in REHEARSED]


def pytest_step(path: Path, label: str, backends: Sequence[str], part: int = 0, parts: int = 1) -> Step:
    name = f"{path.relative_to(TESTS)} [{label}]" + (f" {part + 1}/{parts}" if parts > 1 else "")
    report = WORK / "reports" / f"{path.parent.name}-{path.stem}-{label}-{part}.xml"
    command = python("-m", "pytest", "-q", "-rN", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={report}")
    # Not the checkout, which pyproject.toml puts before the build: its road_kernels has no extension.
    command += [
        "-o",
        "pythonpath=tests tests/gpu",
        f"--part={part}/{parts}",
        *(f"--backend={backend}" for backend in backends),
        str(path),
    ]
    return Step(name, command, LIMIT, judge=judge_pytest(report))


def steps_of(path: Path, processes: dict[str, Sequence[str]]) -> list[Step]:
    steps = []
    for label, backends in processes.items():
        count = PARTS.get(str(path.relative_to(TESTS)), 1) if label == "triton" else 1
        steps += [pytest_step(path, label, backends, part, count) for part in range(count)]
    return steps


def test_steps(cuda: bool) -> list[Step]:
    """A process per file and backend, so that a device-side error ends only one of them."""
    steps = []
    for path in sorted(HERE.glob("test_*.py")):
        steps += steps_of(path, ONLY_ON_GPU if cuda else {"skipped": ()})
    for path in test_files(cuda):
        processes = BY_BACKEND if TAKES_BACKEND.search(path.read_text()) else WITHOUT_BACKEND
        steps += steps_of(path, processes if cuda else {"shim": ("cuda_shim",)})
    for name in ON_THE_CPU_TOO if cuda else ():  # on a GPU machine, CPU tensors must work as elsewhere
        step = pytest_step(TESTS / name, "cpu", WITHOUT_BACKEND["all"])
        step.environment = {"ROAD_KERNELS_TEST_DEVICE": "cpu"}
        steps.append(step)
    return steps


def longest_first(steps: list[Step]) -> list[Step]:
    """So that nothing long is left for the end: checkers, tests that start processes, what Triton compiles."""
    words = ("sanitizer", "assertions", "[triton]", "gpu/", "")
    return sorted(steps, key=lambda step: next(k for k, word in enumerate(words) if word in step.name))


def sanitizer_steps(cuda: bool) -> list[Step]:
    script = str(HERE / "sanitized.py")
    if not cuda:
        return [Step("sanitizer: the script alone", python(script, "cuda_shim"))]
    checker = find_tool("compute-sanitizer")
    if checker is None:
        return [Step("sanitizer", None, detail="no compute-sanitizer on PATH or in the CUDA toolkit")]
    common = ["--error-exitcode", "86", "--print-limit", "20"]
    # Without torch's caching allocator, every tensor is an allocation of its own, and reads past it are detected.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    steps = [
        Step(
            f"sanitizer: {tool}",
            [checker, "--tool", tool, *common, *python(script)],
            LIMIT,
            environment,
            judge_sanitizer,
        )
        for tool in TOOLS
    ]
    triton = [checker, "--tool", "memcheck", *common, *python(script, "triton", "--few")]
    return [*steps, Step("sanitizer: memcheck, triton", triton, LIMIT, environment, judge_sanitizer)]


def sweep_step(name: str, seconds: float, cuda: bool, results: Path, left: float) -> Step:
    """A benchmark in the time that is left. It starts no case after that, and reports which ones it left out."""
    device = ["--device", "cuda", "--gpu-check"] if cuda else ["--device", "cpu", "--quick"]
    seconds = max(0, min(seconds, round(left) - 25))
    limits = ["--seconds", str(seconds), "--results", str(results)]
    environment = {"OMP_NUM_THREADS": str(os.cpu_count())}
    return Step(f"benchmark: {name}", python("-m", f"benchmarks.{name}", *device, *limits), seconds + 25, environment)


def options_of(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=465, help="nothing runs longer than this, all in all")
    parser.add_argument("--only", nargs="+", default=[], help="steps whose name has one of these words")
    out = os.environ.get("OUT")
    parser.add_argument("--results", type=Path, default=Path(out) if out else None, help="default: $OUT, if set")
    parser.add_argument("--commit", help="where there is no git to ask")
    parser.add_argument("--built", action="store_true", help="take the build of an earlier run, or of another machine")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = options_of(argv)
    cuda, start = options.device == "cuda", time.monotonic()
    for folder in ("logs", "reports", "results"):
        shutil.rmtree(WORK / folder, ignore_errors=True)
        (WORK / folder).mkdir(parents=True)
    sanitizers = os.path.dirname(find_tool("compute-sanitizer") or "")
    environment = {
        # The build comes before the checkout, whose road_kernels has no extension.
        "PYTHONPATH": os.pathsep.join(map(str, (SITE, ROOT, TESTS, HERE))),
        "PYTHONSAFEPATH": "1",
        # With ninja, in case this Python was called by its path, and compute-sanitizer, which some tests call.
        "PATH": os.pathsep.join(filter(None, (os.path.dirname(sys.executable), os.environ.get("PATH"), sanitizers))),
        # The home folder may be read-only, and processes share what one of them has compiled.
        "TRITON_CACHE_DIR": str(WORK / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(WORK / "inductor"),
        "PYTHONUNBUFFERED": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # which the tests do not need
        "ROAD_KERNELS_TEST_DEVICE": options.device,
        "OMP_NUM_THREADS": "2",
        "TORCHINDUCTOR_COMPILE_THREADS": "2",
        **({"ROAD_KERNELS_COMMIT": options.commit} if options.commit else {}),
    }
    runner = Runner(ROOT, WORK / "logs", environment, options.seconds)

    def chosen(steps: list[Step]) -> list[Step]:
        return [step for step in steps if not options.only or any(word in step.name for word in options.only)]

    before = state_of_gpu()
    first, second = build_steps(cuda)
    if not options.built:
        runner.run([first])
    if first.status == "FAILED":
        runner.run([second])
        if second.status == "ok":
            first.status = "replaced"
    info = "import json, road_kernels as rk; print(json.dumps(rk.backend_info(), indent=1))"
    runner.run([Step("backends", python("-c", info), 60, judge=judge_build(cuda))])
    steps = longest_first(chosen(test_steps(cuda) + sanitizer_steps(cuda)))
    runner.run(steps, WORKERS if cuda else 1, reserve=FOR_BENCHMARKS)
    for name, seconds in SWEEPS.items():
        for step in chosen([sweep_step(name, seconds, cuda, WORK / "results", runner.left())]):
            runner.run([step])
    return write_summary(runner, WORK, options, before, time.monotonic() - start)


if __name__ == "__main__":
    sys.exit(main())
