# One virtual environment, made when missing and kept up to date by every target that needs it.
#
#   make install [ACCELERATOR=cpu|tpu|cuda]   the pinned packages of requirements/ and this package, editable
#   make test                                 all tests but the slow ones
#   make test-slow                            those: end to end, and properties with thousands of cases
#   make lint                                 ruff and mypy
#   make demo [SEED=0]                        warm start, GRPO and Poly-EPO on polynomials, and their report
#   make results [QUICK=1]                    the runs behind docs/results.md, and that page
#   make lock [LOCK_FLAGS=--upgrade]          the lock files again, from pyproject.toml
#   make clean                                removes the environment and the tools' caches; keeps runs/
#
# Written for GNU make 3.81 (macOS) and later.

ACCELERATORS := cpu tpu cuda
PYTHONS := 3.11 3.12 3.13

PYTHON ?= python3
VENV ?= .venv
SEED ?= 0
# A run directory belongs to one config, the seed included.
RUNS ?= runs/polynomial$(if $(filter-out 0,$(SEED)),-seed$(SEED))
PY := $(VENV)/bin/python

# Written last by a complete installation; its content is the accelerator that was installed, so that a plain
# `make test` after `make install ACCELERATOR=cuda` keeps what is there.
STAMP := $(VENV)/installed-accelerator
INSTALLED := $(filter $(ACCELERATORS),$(shell cat $(STAMP) 2>/dev/null))
ACCELERATOR ?= $(if $(INSTALLED),$(INSTALLED),cpu)

ifneq ($(words $(ACCELERATOR)) $(filter $(ACCELERATORS),$(ACCELERATOR)),1 $(ACCELERATOR))
  $(error ACCELERATOR is '$(ACCELERATOR)'; expected one of: $(ACCELERATORS))
endif

ifneq ($(words $(VENV)),1)
  $(error VENV is '$(VENV)'; expected one path without spaces)
endif

VERSION_OF := -c 'import sys; print("%d.%d" % sys.version_info[:2])'

.PHONY: install test test-slow lint demo results lock clean reinstall
.DEFAULT_GOAL := install

install: $(STAMP)
ifneq ($(filter command environment,$(origin PYTHON)),)
	@wanted=`$(PYTHON) $(VERSION_OF) 2>/dev/null`; held=`$(PY) $(VERSION_OF)`; [ "$$wanted" = "$$held" ] || { \
	  echo "error: $(VENV) holds Python $$held, and PYTHON=$(PYTHON) is $${wanted:+Python }$${wanted:-not there}: run \`make clean\` first, or name another VENV" >&2; exit 1; }
endif
	@echo "$(VENV): Python `$(PY) $(VERSION_OF)`, `cat $(STAMP)`"

# The environment itself. Everything that can be wrong with the interpreter is said before anything is made.
$(PY):
	@version=`$(PYTHON) $(VERSION_OF) 2>/dev/null` || { \
	  echo "error: PYTHON=$(PYTHON) does not run; supported: Python $(PYTHONS)" >&2; exit 1; }; \
	case " $(PYTHONS) " in *" $$version "*) ;; *) \
	  echo "error: PYTHON=$(PYTHON) is Python $$version; supported: Python $(PYTHONS)" >&2; exit 1;; esac; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: PYTHON=$(PYTHON) cannot make virtual environments: install its venv package (Debian and Ubuntu: python$$version-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# An accelerator's plugins would still be found by JAX after a switch to another: the environment is emptied first.
# Over the CPU's packages an accelerator's can simply be added.
$(STAMP): pyproject.toml $(wildcard requirements/$(ACCELERATOR)-py*.txt) \
          $(if $(filter-out $(ACCELERATOR),$(INSTALLED)),reinstall) | $(PY)
	@lock=requirements/$(ACCELERATOR)-py`$(PY) $(VERSION_OF) | tr -d .`.txt; \
	[ -f $$lock ] || { echo "error: $(VENV) holds Python `$(PY) $(VERSION_OF)`, which has no $$lock; supported: Python $(PYTHONS)" >&2; exit 1; }; \
	case "$(INSTALLED)" in ""|cpu|$(ACCELERATOR)) ;; *) \
	  echo "$(VENV) holds the packages for $(INSTALLED): emptied for $(ACCELERATOR)"; \
	  base=`$(PY) -c 'import sys; print(sys._base_executable)'`; "$$base" -m venv --clear $(VENV) || exit 1;; esac; \
	rm -f $@; set -x; \
	$(PY) -m pip install -c $$lock -e ".[test,dev,$(ACCELERATOR)]"
	@echo $(ACCELERATOR) > $@

reinstall:

test: $(STAMP)
	$(PY) -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(STAMP)
	$(PY) -m pytest -n 2 --dist loadfile -m slow

# Directories that hold no Python yet would be an error to mypy.
TYPED := polyepo_jax $(foreach folder,configs benchmarks,$(if $(wildcard $(folder)/*.py $(folder)/*/*.py),$(folder)))

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy --explicit-package-bases $(TYPED)

RUN := $(PY) -m
RECIPES := configs/polynomial

# Each command resumes where it stopped and does nothing when it is done.
demo: $(STAMP)
	$(RUN) polyepo_jax.sft --config $(RECIPES)/warm_start.py --run-dir $(RUNS)/warm_start --seed $(SEED)
	$(RUN) polyepo_jax.evaluate --run-dir $(RUNS)/warm_start
	$(RUN) polyepo_jax.train --config $(RECIPES)/grpo.py --run-dir $(RUNS)/grpo --init.run_dir $(RUNS)/warm_start --seed $(SEED)
	$(RUN) polyepo_jax.evaluate --run-dir $(RUNS)/grpo
	$(RUN) polyepo_jax.train --config $(RECIPES)/poly_epo.py --run-dir $(RUNS)/poly_epo --init.run_dir $(RUNS)/warm_start --seed $(SEED)
	$(RUN) polyepo_jax.evaluate --run-dir $(RUNS)/poly_epo
	$(RUN) polyepo_jax.report $(RUNS)/warm_start $(RUNS)/grpo $(RUNS)/poly_epo --out $(RUNS)/report

# As many runs at once as there are cores; resumes too. The extra makes SmolLM2's directory, which QUICK does without.
results: $(STAMP)
	$(if $(QUICK),,$(PY) -m pip install -e ".[smollm]")
	$(RUN) benchmarks.study $(if $(QUICK),--quick)

# Locks are for pip's -c and hold for one interpreter and Linux on x86-64. Pins that still fit pyproject.toml stay
# as they are unless LOCK_FLAGS=--upgrade. The target does not depend on the installation, because a lock that no
# longer fits would keep the tool that mends it from being installed.
UV := $(VENV)/bin/uv
LOCK_DIR ?= requirements
LOCK_FLAGS ?=

$(UV): | $(PY)
	$(PY) -m pip install uv

lock: | $(UV)
	@mkdir -p $(LOCK_DIR)
	@for accelerator in $(ACCELERATORS); do \
	  platform=x86_64-manylinux_2_28; \
	  if [ $$accelerator = tpu ]; then platform=x86_64-manylinux_2_31; fi; \
	  for version in $(PYTHONS); do \
	    lock=$(LOCK_DIR)/$$accelerator-py`echo $$version | tr -d .`.txt; \
	    echo $$lock; \
	    $(UV) pip compile pyproject.toml --extra test --extra dev --extra $$accelerator \
	      --python-version $$version --python-platform $$platform --annotation-style line \
	      --custom-compile-command "make lock" --quiet $(LOCK_FLAGS) -o $$lock || exit 1; \
	  done; \
	done

clean:
	@[ ! -e $(VENV) ] || [ -e $(VENV)/pyvenv.cfg ] || { echo "error: VENV=$(VENV) is no virtual environment: left alone" >&2; exit 1; }
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
	find polyepo_jax tests configs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
