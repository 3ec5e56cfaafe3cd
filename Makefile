# make demo: the whole pipeline on the embedded mini world.   make test: lint, types and tests.   make test-slow: minutes-long checks.
# make gpu-check: whether a machine with a GPU is right, and how fast.   make bench: the README's speed ratios measured again.
# make test-lowest: tests with the oldest versions that pyproject.toml allows.
PYTHON ?= python3.11
VENV ?= .venv
DEMO ?= demo
BIN := $(VENV)/bin
LOWEST ?= $(VENV)-lowest

.PHONY: demo test test-slow test-lowest gpu-check bench install clean

# The README's pipeline, command by command. Each step skips what an earlier, interrupted start has finished.
# One thread a process and two processes: at the mini models' size that beats one process with two threads.
demo: export OMP_NUM_THREADS = 1
demo: install
	$(BIN)/python -m gift_mini.tasks --out $(DEMO)/data
	$(BIN)/gift-generate plan --order mini --images-per-task 300 --steps 12 --guidance-scale 3 --images-per-shard 100 --out $(DEMO)/plan.parquet
	$(BIN)/gift-generate render --plan $(DEMO)/plan.parquet --out $(DEMO)/shards --image-format png --processes 2
	$(BIN)/gift-generate verify --out $(DEMO)/shards
	$(BIN)/gift-generate show --out $(DEMO)/shards --to $(DEMO)/contact_sheet.png
	$(MAKE) --no-print-directory -j2 $(DEMO_METHODS:%=demo-run-%)
	$(BIN)/gift-train report $(DEMO)/runs --out $(DEMO)/report

DEMO_METHODS := gift l2 finetune zero_shot

demo-run-%:
	$(BIN)/gift-train run --method $* --shards $(DEMO)/shards --data-root $(DEMO)/data --out $(DEMO)/runs/$*

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder -rs -m "not slow and not gpu"

test-slow: install
	$(BIN)/pytest -m slow

gpu-check: install
	$(BIN)/python -m benchmarks.gpu_check

bench: install
	$(BIN)/python -m benchmarks.readme

# The lower bounds laid over the usual environment, which lends the rest, torch first of all; --check tells if one is not in effect.
test-lowest: install
	$(PYTHON) -m venv --clear --without-pip $(LOWEST)
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> $$(echo $(LOWEST)/lib/python3*/site-packages)/base.pth
	$(BIN)/python tests/lowest_versions.py > $(LOWEST)/lowest.txt
	$(BIN)/python -m pip --python $(LOWEST)/bin/python install --quiet --editable ".[test]" --constraint $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python tests/lowest_versions.py --check
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n auto --maxprocesses 8 --dist loadfile -m "not slow and not gpu" $(LOWEST_TESTS)

# Where the libraries' numbers, files and private interfaces show.
LOWEST_TESTS := tests/test_dependencies.py tests/generate/rendering tests/generate/output/test_other_readers.py \
	$(addprefix tests/train/clip/test_,model.py towers.py openai_files.py private_interfaces.py transformers_folder.py transformers_export.py) \
	tests/train/parity tests/mini_world tests/storage/test_s3.py tests/shared/test_submission.py tests/train/running/test_trackers.py

install: $(VENV)/.installed

# Installed once, and again when the requirements change. The marker is written last: an interrupted install is repeated.
$(VENV)/.installed: pyproject.toml requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) $(DEMO)
