# The targets that people and CI run. Each first sets up .venv (deploy/setup.sh), which takes no time once it is done:
# `train` with the packages that it needs, the others with all.
#   make test PYTHON=/path/to/python3.11    create .venv with this Python
#   make test ARGS='-k layout'              pass further arguments to pytest
#   make test JOBS=2                        run the tests in two processes (default: 4; they often wait)

SEEDS ?= 1
JOBS ?= 4
# OpenBLAS's kernels for processors without AVX and what Numba compiles for any of x86-64; and where this processor has
# AVX-512, whose kernels the other tests use, OpenBLAS's for those with AVX2 alone.
KERNELS ?= OPENBLAS_CORETYPE=Nehalem,NUMBA_CPU_NAME=generic \
    $(shell grep -qsw avx512f /proc/cpuinfo && echo OPENBLAS_CORETYPE=Haswell)
# The tests of a file run in one process, since they share its module-scoped fixtures. The fast ones wait for nothing:
# one process per processor, since each imports all test files.
IN_PROCESSES = -n $(JOBS) --dist loadfile --no-loadscope-reorder
test-fast test-kernels: JOBS = logical
# The files with a test of a marker, unless ARGS names files: the others need not be imported.
FILES_OF = $(if $(filter tests/%,$(ARGS)),,$$(grep -rl --include='test_*.py' 'pytest\.mark\.$(1)\>' tests))
# Compiled modules are kept, those of the tests too: otherwise each of a thousand processes compiles them again.
unexport PYTHONDONTWRITEBYTECODE

COMPILE = .venv/bin/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url --custom-compile-command "make lock"
ALL_EXTRAS = --extra mxnet --extra all --extra dev
EXTRAS_IN_IMAGE = --constraint requirements.lock --extra aws --extra dashboard --extra serve
IN_IMAGE = --python-platform x86_64-manylinux_2_36 $(EXTRAS_IN_IMAGE)

.DEFAULT_GOAL := help
.PHONY: help train test test-all test-long test-fast test-kernels test-docker chaos bench bench-data quality docs lint types format lock clean setup horovod spark torch
.NOTPARALLEL:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | while IFS='|' read -r name what; do printf '%-16s %s\n' "$$name" "$$what"; done

train: ## train on Last.fm, print similar artists and recommendations, draw a map
	@sh deploy/setup.sh sample
	.venv/bin/crossfade demo

test: setup ## run the tests, the fast ones first, without the long ones of what few changes touch
	.venv/bin/python -m pytest -m "not docker and not long" $(IN_PROCESSES) $(ARGS)

test-long: setup ## run the long tests: Spark, MLflow, EC2, chaos, fuzzing, notebooks
	.venv/bin/python -m pytest -m "long and not docker" $(IN_PROCESSES) $(ARGS)

test-all: test test-long test-kernels test-docker ## run all tests; as root

test-fast: setup ## run the fast tests, which take about a minute together
	.venv/bin/python -m pytest -m "not cluster and not slow and not docker" $(IN_PROCESSES) $(ARGS)

test-kernels: setup ## run the tests that compare numbers with the CPU kernels of other processors
	@failed=; for kernels in $(KERNELS); do \
	    echo "$$kernels"; \
	    env $$(echo "$$kernels" | tr , ' ') .venv/bin/python -m pytest -m "numbers and not docker" $(IN_PROCESSES) $(ARGS) $(call FILES_OF,numbers) || failed=1; \
	done; [ -z "$$failed" ]

test-docker: setup ## run the tests of the image and docker-compose.yml, on a Docker engine they start; as root
	@.venv/bin/python tests/support/docker_engine.py
	.venv/bin/python -m pytest -m docker $(ARGS) $(call FILES_OF,docker)

chaos: setup ## inject 20 faults into a training; compare it with an undisturbed one (SEEDS="1 2 3")
	@for seed in $(SEEDS); do .venv/bin/python tests/support/chaos.py --seed $$seed $(ARGS) || exit 1; done

bench: setup ## measure against peers and the machine, and write docs/evidence.md; resumes (ARGS=--quick: in minutes)
	.venv/bin/python benchmarks/bench.py $(ARGS)

bench-data: setup ## measure how fast events are prepared, and how that grows
	.venv/bin/python benchmarks/preparing.py $(ARGS)

quality: setup ## train on published splits and write docs/evidence.md; resumes (CROSSFADE_DATA=folder)
	.venv/bin/python benchmarks/quality.py $(ARGS)

docs: setup ## build the documentation site into build/site
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict

lint: setup ## check style and formatting with ruff, and the directions of imports with import-linter
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports --no-cache

types: setup ## check types with mypy
	.venv/bin/mypy

format: setup ## reformat the code with ruff
	.venv/bin/ruff check --fix-only .
	.venv/bin/ruff format .

lock: setup ## write all lock files from pyproject.toml (ARGS=--upgrade: newer versions)
	$(COMPILE) --universal $(ALL_EXTRAS) --output-file requirements.lock $(ARGS) pyproject.toml
	$(COMPILE) $(IN_IMAGE) --extra mxnet --output-file docker/requirements-cpu.lock pyproject.toml
	$(COMPILE) --universal $(EXTRAS_IN_IMAGE) --output-file docker/requirements-slim.lock pyproject.toml
	$(COMPILE) $(IN_IMAGE) --extra mxnet --extra torch --output-file docker/requirements-torch.lock pyproject.toml
	$(COMPILE) $(IN_IMAGE) --output-file docker/requirements-cu112.lock pyproject.toml docker/requirements-cu112.in
	$(COMPILE) $(IN_IMAGE) --output-file docker/requirements-cu90.lock pyproject.toml docker/requirements-cu90.in
	$(COMPILE) --output-file deploy/requirements-audit.lock $(ARGS) deploy/requirements-audit.in
	HOROVOD_WITHOUT_PYTORCH=1 $(COMPILE) --python-platform x86_64-manylinux_2_28 --constraint requirements.lock --output-file deploy/requirements-horovod.lock deploy/requirements-horovod.in

setup: ## set up .venv with all packages, nothing else
	@sh deploy/setup.sh

horovod: setup ## build Horovod into .venv, for dense layers of several workers with servers; needs g++
	@sh deploy/horovod.sh

spark: setup ## install PySpark into .venv, for prepare and recommend --engine spark: 350 MB; needs Java
	@.venv/bin/python -I -m pip install --disable-pip-version-check --no-input --quiet --no-deps --no-build-isolation \
	    --require-hashes --requirement deploy/requirements-spark.lock

torch: setup ## install PyTorch into .venv, for train.engine torch; up to 3 GB
	@sh deploy/torch.sh

clean: ## remove .venv, caches, and builds; keep data/ and runs/
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
