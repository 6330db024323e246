# Each target sets up .venv by itself, once; a second call installs nothing. Linux and macOS.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= runs/distill

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help distill lab browser test quick lint check notebooks study pictures bench bench-peers mutants mutants-all oldest clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

distill: .venv/.base ## A ResNet-50 teaches a ResNet-18 in five minutes: progress, a table and a picture in runs/distill
	$(BIN)/python -m kdlib distill --teacher resnet50-fashion --student resnet18 --images 5000 --epochs 5 --views 3 \
		--optimizer adamw --learning-rate 3e-3 --weight-decay 0.05 --schedule one-cycle --batch-size 64 --out $(call quoted,$(OUT)) --overwrite
	@echo "A long run, all 55,000 images for twelve epochs, with a more accurate teacher, gave 94.4 % (five seeds; see README.md)."

lab: .venv/.course ## JupyterLab on the first lesson, on this machine only
	@$(BIN)/python -m course.lab

browser: .venv/.browser ## Teacher and student answer in the browser: draw, or upload a photo; STUDENT=FILE for one of yours (needs npm once)
	@$(BIN)/python -m course.browser $(if $(STUDENT),--student $(call quoted,$(STUDENT)))

check: .venv/.course ## Can this machine run the course? A verdict, and what to do
	$(BIN)/python -m kdlib check --course

test: .venv/.dev ## Every test: the units in parallel, then each lesson once, then the browser
	$(BIN)/python -m pytest tests --ignore tests/browser -n auto -q
	$(BIN)/python -m pytest notebooks -m "not one_thread" -q
	$(BIN)/python -m pytest notebooks -m one_thread -n 2 --dist loadfile -q
	$(BIN)/python -m pytest tests/browser -q

quick: .venv/.dev ## The fast tests, on all cores; lessons, browser and what trains, draws or starts processes left out
	$(BIN)/python -m pytest tests --ignore tests/browser -m "not slow" -n auto -q --durations 5 --durations-min 1

lint: .venv/.dev ## Style, format and types of the code, and the form of the notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m course.notebooks --check

notebooks: .venv/.dev ## Execute the lessons and write them anew; LESSON=04 for one
	$(BIN)/python -m course.notebooks $(LESSON)

study: .venv/.base ## The study's full list, ResNet-8 with 10,000 images, anew (hours); finished runs are not run again
	$(BIN)/python -m kdlib study full --seeds 10 --out data/results/next

pictures: .venv/.dev ## The two pictures of the README, drawn anew from the playground and from the results of the study
	$(BIN)/python -m course.readme_images playground images/playground.png
	$(BIN)/python -m course.readme_images study images/study.png

bench: .venv/.base ## What distillation costs beside a plain step (some minutes, on a quiet machine); FULL=--full for the long one
	$(BIN)/python benchmarks/bench.py $(FULL)

bench-peers: .venv-peers/.ready ## The same training in three other libraries, and what their losses give
	.venv-peers/bin/python benchmarks/peers.py

mutants: .venv/.dev ## Do the tests find the known mistakes of distillation? Each is made in a copy (5 minutes)
	$(BIN)/python tests/mutants.py

mutants-all: .venv/.dev ## Mutation testing of losses, methods and teachers, line by line (half an hour and more)
	$(BIN)/mutmut run
	$(BIN)/mutmut results

oldest: .venv-oldest/.ready ## The fast tests with the oldest versions that pyproject.toml allows, but for the extra deploy
	.venv-oldest/bin/python -m pytest tests --ignore tests/browser -m "not slow" -n auto -q

clean: ## Remove the environments and what runs wrote
	rm -rf .venv .venv-peers .venv-oldest runs mutants .pytest_cache .ruff_cache .hypothesis *.egg-info

# An environment that was moved or copied with its folder imports kdlib from the old one, and one whose Python was
# replaced by another version finds nothing of what it holds.
# stale FOLDER: the target that removes such an environment, or nothing
stale = $(shell cfg=$(1)/pyvenv.cfg; [ -f $$cfg ] || exit 0; \
	{ ! grep -q '^command = ' $$cfg || grep -qF -- " $$(pwd -P)/$(1)" $$cfg; } && \
	$(1)/bin/python -V 2>/dev/null | grep -qF -- "$$(sed -n 's/^version = \([0-9]*\.[0-9]*\)\..*/ \1./p' $$cfg)" || \
	echo stale$(1))
STALE := $(call stale,.venv)

.PHONY: stale.venv stale.venv-peers stale.venv-oldest
stale.venv stale.venv-peers stale.venv-oldest:
	@echo "This folder was moved or copied, or the Python of $(@:stale%=%) replaced: $(@:stale%=%) is made anew."
	@rm -rf $(@:stale%=%)

# The stamps are younger than pyproject.toml when what it asks for is installed.
.venv/.base: pyproject.toml $(STALE)
	$(call install,--editable .)

.venv/.course: pyproject.toml $(STALE)
	$(call install,--editable '.[course$(comma)export$(comma)compress$(comma)search]')
	@touch .venv/.base .venv/.browser

.venv/.browser: pyproject.toml $(STALE)
	$(call install,--editable '.[export]')
	@touch .venv/.base

.venv/.dev: pyproject.toml $(STALE)
	$(call install,--editable '.[course$(comma)dev$(comma)compress$(comma)export$(comma)deploy$(comma)device$(comma)search]')
	@touch .venv/.base .venv/.course .venv/.browser

.venv-peers/.ready: benchmarks/peers.txt pyproject.toml $(call stale,.venv-peers)
	$(call install,--editable . --requirement benchmarks/peers.txt,.venv-peers)

.venv-oldest/.uv: $(call stale,.venv-oldest)
	$(call install,uv,.venv-oldest)

# Without the extra deploy: executorch asks for newer numpy and pandas than the others do, which would go untested.
.venv-oldest/.ready: pyproject.toml .venv-oldest/.uv
	@.venv-oldest/bin/uv pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct \
		--editable '.[course$(comma)dev$(comma)compress$(comma)export$(comma)device$(comma)search]'
	@touch $@

comma := ,

# quoted TEXT: one word for the shell, whatever is in it
quoted = '$(subst ','\'',$(1))'

# install WHAT into an environment, .venv unless another is named; one that was left half made is made again
define install
	@$(or $(2),.venv)/bin/python -m pip --version >/dev/null 2>&1 || { \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
			{ echo "Python 3.11 or newer is needed; $(PYTHON) is older, or cannot be run. Run: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }; \
		$(PYTHON) -m venv $(or $(2),.venv) || \
			{ echo "Could not make $(or $(2),.venv): see above. On Debian and Ubuntu it is often: sudo apt install python3-venv"; exit 1; }; }
	@$(or $(2),.venv)/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(or $(2),.venv) has a Python before 3.11. Run: rm -rf $(or $(2),.venv), and then make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(or $(2),.venv) (once; some minutes, and on Linux gigabytes, if PyTorch has to come with CUDA)"
	@$(or $(2),.venv)/bin/python -m pip install --quiet --disable-pip-version-check $(1)
	@touch $@
endef
