# Two commands do everything: `make demo` and `make test`. The set-up is done once and kept in .venv.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test check house figures organism smollm2 chat-study architectures metrics screenshots docs tutorial faults bench bench-smoke clean

demo: $(READY)
	$(BIN)/interp demo

test: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadscope

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python recipes/house.py --check

house: $(READY)
	$(BIN)/python recipes/house.py

figures: $(READY)
	$(BIN)/python recipes/gallery.py

organism: $(READY)
	$(BIN)/python recipes/organism.py

smollm2: $(READY)
	$(BIN)/python recipes/smollm2.py

chat-study: smollm2
	$(BIN)/python analyses/chat/study.py

architectures: $(READY)
	$(BIN)/python recipes/architectures.py

screenshots: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python recipes/screenshots.py

metrics: $(READY)
	$(BIN)/python recipes/metrics.py

docs: $(READY)
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env docs build/docs
	@echo build/docs/index.html

tutorial: $(READY)
	$(BIN)/python recipes/tutorial.py

faults: $(READY)
	HF_HUB_OFFLINE=1 INTERP_FAULTS=3000 $(BIN)/python -m pytest -s tests/faults/test_fuzz.py tests/faults/test_kill.py

bench: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/speed.py

bench-smoke: $(READY)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python benchmarks/speed.py --smoke

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs,export]'
	touch $(READY)

clean:
	rm -rf .venv build dist *.egg-info
