# Every target makes its own virtual environment (VENV) and installs what it needs.
#   make demo     what is usable here, a mixed batch served and checked, and what it costs
#   make test     all tests, Python and C++
#   make bench    every benchmark, with tables and plots, in benchmarks/results (minutes)
#   make gpu-check    builds, tests and measures on the GPU of this machine, with its own python3: no network
#   make gpu-tune     compares the choices of csrc/cuda/tuning.h there
#   make lint     ruff and clang-format, which `pre-commit install` runs at every commit too
# Another Python or torch (2.11 or newer):  make test PYTHON=python3.12 TORCH='torch==2.11.0' VENV=.venv312
# An environment of yours, as it is:        make test VENV=/path/to/venv TORCH=

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check -q
SOURCES = $(shell find csrc -type f) setup.py pyproject.toml $(wildcard python_fallback/*.py)

.PHONY: demo test test-python test-triton test-shim test-cpp bench bench-check gpu-check gpu-tune lint build clean

build: $(VENV)/.built

$(VENV)/.tools: requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH),$(PIP) install '$(TORCH)')
	$(PIP) install -r requirements-dev.txt
	$(if $(shell command -v nvcc),$(PIP) install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm)
	touch $@

# Without build isolation: an isolated build would compile against another torch than the one installed.
$(VENV)/.built: $(VENV)/.tools $(SOURCES)
	$(PIP) install --no-build-isolation --no-deps -e .
	touch $@

demo: build
	$(BIN)/python -m road_kernels

test: test-python test-triton test-shim test-cpp

# The backends that this build must have: a missing one fails the run instead of skipping its tests.
REQUIRE ?= cpu,python
test-python: build
	ROAD_KERNELS_REQUIRE=$(REQUIRE) $(BIN)/python -m pytest tests

# The Triton kernels in Triton's interpreter, on CPU tensors. It is chosen when a process first imports Triton.
test-triton: build
	test "$$(uname -sm)" != "Linux x86_64" || TRITON_INTERPRET=1 ROAD_KERNELS_REQUIRE=triton \
	  $(BIN)/python -m pytest -q -k "triton and not cuda_shim" --ignore tests/gpu tests

# The CUDA kernels on the host, threads in reverse order, under AddressSanitizer and UBSan (loaded before Python).
PRELOAD = $(foreach library,libasan.so libubsan.so,$(shell $(or $(CXX),g++) -print-file-name=$(library)))
test-shim: build
	test "$$(uname -m)" != x86_64 || LD_PRELOAD="$(PRELOAD)" ASAN_OPTIONS=detect_leaks=0 ROAD_SHIM_SANITIZE=1 ROAD_SHIM_REVERSE=1 \
	  $(BIN)/python -m pytest -q -k "cuda_shim and not gradcheck" \
	  tests/ops/test_forward.py tests/ops/test_backward.py tests/ops/test_layouts.py tests/ops/test_merge.py \
	  tests/ops/test_property.py tests/ops/test_many_rows.py tests/backends/test_cuda_shim.py

# The torch-free core as a C++ library of its own: once as released, once under AddressSanitizer and UBSan.
test-cpp: $(VENV)/.tools
	for sanitize in OFF ON; do \
	  $(BIN)/cmake -S . -B build/cmake-$$sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	    -DCMAKE_BUILD_TYPE=Release -DROAD_SANITIZE=$$sanitize >/dev/null && \
	  $(BIN)/cmake --build build/cmake-$$sanitize && \
	  $(BIN)/ctest --test-dir build/cmake-$$sanitize --output-on-failure || exit 1; \
	done

# Minutes, on a machine with nothing else to do: the targets, then every sweep with its tables and plots.
bench: build
	$(BIN)/python -m pytest -q benchmarks --benchmark-only
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.generation
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.report

# Once each, for correctness: a shared machine's times prove nothing.
bench-check: build
	$(BIN)/python -m pytest -q benchmarks --benchmark-disable

# Needs torch with CUDA, nvcc, triton, pytest, hypothesis and numpy in $(PYTHON); GPU_CHECK="--device cpu" rehearses it.
gpu-check:
	$(PYTHON) tests/gpu/check.py $(GPU_CHECK)

gpu-tune:
	$(PYTHON) -m benchmarks.gpu_tune $(GPU_TUNE)

lint: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc tests -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format --dry-run -Werror

clean:
	rm -rf build dist *.egg-info $(VENV)
