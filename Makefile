# Two commands matter: `make demo` and `make test`. Both create .venv and install the locked versions.
VENV ?= .venv
BUILD_IMAGE ?= docker build
BIN := $(VENV)/bin
# Processes that share the tests, each file in one of them. By hand, `pytest FILE` runs in one process.
WORKERS ?= 2
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
INSTALLED := $(VENV)/.installed

.PHONY: install demo test test-all check image lock peers clean

install: $(INSTALLED)

# torch goes in first and by its exact version: a looser request takes another build of it.
$(INSTALLED): pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet torch==2.13.0
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --editable '.[train,search,tensorboard,tensorrt,postgres,otel,dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/recsys demo --out runs/demo

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(PYTEST)

# Needs the programs that the `service` tests drive:
# apt-get install postgresql chromium prometheus nginx-light systemd buildah debootstrap docker.io docker-compose
test-all: check
	RECSYS_REQUIRE_SERVICES=1 $(PYTEST) -m 'not gpu'

# The serving image. Without a docker daemon: make image BUILD_IMAGE='buildah bud --format docker'
image:
	$(BUILD_IMAGE) -f deploy/Dockerfile -t recsys .

# Peers that benchmarks compare with, each in an environment of its own: their pins clash with ours.
peers:
	for peer in rectools replay; do \
	  python3 -m venv .venv-peers/$$peer && \
	  .venv-peers/$$peer/bin/pip install --quiet torch==2.13.0 && \
	  .venv-peers/$$peer/bin/pip install --quiet --requirement peers/$$peer.txt || exit 1; \
	done

lock: $(INSTALLED)
	{ grep '^#' constraints.txt; $(BIN)/pip freeze --exclude-editable | sed 's/+cpu//'; \
	  grep -E '^(hatchling|editables|trove-classifiers|faiss-gpu|nvidia-[a-z-]+-cu12)==' constraints.txt; } | awk '!seen[$$0]++' > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) .venv-peers runs
