# Everything a person types. Needs Python 3.11 or later, nothing else.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
RUN ?= k8s/runs/quickstart.yaml
FILMS := examples/films
BENCHMARKS := captions_client cli_start controller films large_store latent_format latents_encode lineage quickstart \
	sampling_steps stages stdit2_step train_steps
# Two workers with one thread each: the suite's processes would otherwise fight over the cores.
TEST_WORKERS ?= 2

.PHONY: demo test test-all test-s3 images-test check install films lock generated bench clean help

help:  ## say what there is to make
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: install films  ## generated films -> dataset -> tuned model -> report
	$(BIN)/bricks run $(RUN)

films: install
	@$(BIN)/python examples/make_films.py $(FILMS)

test: install  ## the suite but for long journeys, under 15 minutes on 2 cores
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(TEST_WORKERS) -m "not slow"

# By files: a journey that several tests look at is made once.
test-all: test  ## make test, then what is too long for it
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(TEST_WORKERS) --dist loadfile -m slow

test-s3: install  ## the store's tests against Ceph's S3 gateway (Debian packages, unpacked in ~/.cache/bricks/ceph)
	OMP_NUM_THREADS=1 $(BIN)/python tests/storage/ceph_gateway.py $(BIN)/pytest tests/storage

images-test: install  ## build the images with podman and run every stage in them (IMAGES=quick: three of them)
	$(BIN)/python -m tests.images.build_and_run $(IMAGES)

check: install  ## lint, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(VENV)/installed

# pip takes exactly what requirements.lock says. On Linux, PyPI's torch is the CUDA build (several GB); where you have
# no GPU, point pip at PyTorch's CPU index first (docs/install.md).
$(VENV)/installed: pyproject.toml requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "Bricks needs Python 3.11: install it, or name another: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (two to four minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	@touch $@

lock: install  ## resolve requirements.lock again
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --extra dev --extra opensora pyproject.toml -o requirements.lock
	sed -i 's/^\(torch==[0-9.]*\)+.*/\1/' requirements.lock

generated: install  ## write again what is made from code: schemas, the CRD, k8s/, the chart's tables
	$(BIN)/bricks schema > docs/brickrun.schema.json
	$(BIN)/python -m bricks_core.report.schema > docs/report.schema.json
	$(BIN)/bricks schema --crd > helm/bricks/files/brickruns.yaml
	$(BIN)/python -m k8s.generate
	$(BIN)/python -m helm.generate

bench: install  ## measure every speed we claim, and add dated results
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name --save || exit 1; done

clean:  ## remove the environment, the films and the store
	rm -rf $(VENV) $(FILMS) bricks-store
