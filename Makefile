# Two commands do everything on a machine with Python 3.11, make and git: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A real S3 server for tests, in a Python of its own.
SWIFT := .venv-s3/bin/swift-proxy-server
# Ray for tests, in a Python that has all of .venv besides.
RAY := .venv-ray/bin/ray
# Without a GPU a looser range may pull gigabytes of CUDA packages.
TORCH := torch==2.13.0
# Tests at a time, each with one thread: half of their time they wait, for real processes too, so there are three for each of two cores.
WORKERS ?= 6
JSON_OPTION = $(if $(JSON),--json $(JSON))

.DEFAULT_GOAL := help
.PHONY: s3 ray help docs-site locks sbom images-lint setup demo demo-lm test suite browser test-all attack unit model fuzz gpu lint types chaos docs serve clean benchmarks

help: ## Show this help
	@echo "make TARGET"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'
	@echo "KEEP=1 make demo keeps the demo alive afterwards; make demo JSON=FILE writes its figures."

$(VENV)/.installed: pyproject.toml Makefile
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[coordinator,postgresql,s3,parquet,images,hub,demo,adam8bit,tokenizers,tensorboard,plots,browser,dev]'
	@touch $@

setup: $(VENV)/.installed ## Make .venv and install everything (the other targets do so by themselves)

demo: setup ## A coordinator and six agents fine-tune MiniLM on Banking77, live (about 6 minutes on two cores)
	$(BIN)/python -m examples.demo banking77 $(JSON_OPTION)

demo-lm: setup ## The same for a small Llama on Shakespeare, with text before and after
	$(BIN)/python -m examples.demo shakespeare $(JSON_OPTION)

test: setup lint ## Lint, types and all tests (WORKERS=6 runs six at a time)
	$(MAKE) --jobs 2 types suite

suite: setup ## All tests alone
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.suite --workers $(WORKERS) --durations 10 -rs

browser: setup ## Only the tests with a real Chromium, at every page and action of /admin (a minute)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs tests/browser

test-all: setup lint types ## The same with every test on both databases, for a schedule (twice as long)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.suite --workers $(WORKERS) --durations 10 -rs --both-databases

chaos: setup $(if $(STORAGE),$(SWIFT)) ## 200 runs under random faults, judged to the bit (up to an hour): RUNS=10 SEED=7, REPLICAS=3 coordinators, STORAGE=s3, or POINTS=all to die at each named point
	OMP_NUM_THREADS=1 S3_PROGRAMS="$(CURDIR)/.venv-s3/bin" $(BIN)/python -m tests.faults.chaos --runs $(or $(RUNS),200) --seed $(or $(SEED),0) --json $(or $(JSON),chaos.json) $(if $(POINTS),--points '$(POINTS)') $(if $(REPLICAS),--replicas $(REPLICAS)) $(if $(STORAGE),--storage $(STORAGE))

$(SWIFT):
	$(PYTHON) -m venv .venv-s3 && .venv-s3/bin/python -m pip install --quiet --disable-pip-version-check 'swift==2.38.3' 'setuptools<80'

s3: setup $(SWIFT) ## The contract of stores and uploads on a real S3 server, which is installed beside .venv (about two minutes)
	S3_PROGRAMS="$(CURDIR)/.venv-s3/bin" $(BIN)/python -m pytest -rs tests/contract/test_blob_store.py tests/contract/test_uploads.py tests/contract/test_bucket_uploads.py tests/integration/test_object_storage.py tests/integration/test_replicas_and_bucket.py tests/faults/test_storage.py -k s3

$(RAY): $(VENV)/.installed
	$(BIN)/python -m venv .venv-ray
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$(.venv-ray/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
	.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check 'ray[client]==2.60.0'

ray: setup $(RAY) ## Jobs on a real Ray cluster of this machine; Ray is installed beside .venv (about ten minutes, 1 GB of memory)
	OMP_NUM_THREADS=1 .venv-ray/bin/python -m pytest -rs tests/unit/test_ray.py tests/contract/test_jobs.py tests/e2e/test_ray.py

attack: setup ## Try every attack of docs/threat-model.md on live processes (about ten minutes; JSON=FILE writes the verdicts)
	$(BIN)/python -m tests.attack $(JSON_OPTION)

model: setup ## Search the states of rounds, visits and jobs for a broken promise, for 20 minutes
	MODEL_SECONDS=$${MODEL_SECONDS:-1200} $(BIN)/python -m pytest -s --timeout 7200 tests/model

fuzz: setup ## The whole API as each role, a hundred times as many calls as in the tests (about half an hour)
	FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-400} $(BIN)/python -m pytest -s --timeout 7200 tests/fuzz

gpu: setup ## The tests that need a CUDA card, on a machine that has one; CI has none
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs tests/gpu

unit: setup ## Only the tests that take seconds
	$(BIN)/python -m pytest tests/unit tests/test_architecture.py tests/test_docs.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

docs: setup ## Generate the parts of docs/ that come from the code
	$(BIN)/python -m docs.generate

docs-site: setup ## Build site/, the pages of docs/ as a site; fails where a link leads nowhere
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[site]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

locks: setup ## Write requirements/*.lock anew: what the images install, by version and hash
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[supply]'
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python requirements/lock.py $(if $(CPU_BUILDS),--cpu-builds $(CPU_BUILDS))

sbom: setup ## Write sbom-coordinator.json and sbom-agent.json (CycloneDX): what is in the images
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[supply]'
	for image in coordinator agent; do cat requirements/torch.lock requirements/$$image.lock \
		| $(BIN)/cyclonedx-py requirements --output-format JSON --output-file sbom-$$image.json - || exit 1; done

images-lint: setup ## Look over the Dockerfile with hadolint
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[supply]'
	$(BIN)/hadolint Dockerfile

benchmarks: setup ## Measure what needs no other data (about 40 minutes; needs a quiet machine); docs/benchmarks.md has the others
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.idle_agents
	$(BIN)/python -m benchmarks.import_memory
	$(BIN)/python -m benchmarks.coordinator_memory
	$(BIN)/python -m benchmarks.agent_memory
	$(BIN)/python -m benchmarks.step_time
	$(BIN)/python -m benchmarks.verification
	$(BIN)/python -m benchmarks.plan_accuracy
	$(BIN)/python -m benchmarks.wire_bytes

serve: setup ## Run a coordinator here
	$(BIN)/fedcoord serve

clean: ## Remove what the demos and tools left (not .venv)
	rm -rf demo-banking77 demo-shakespeare chaos.json .pytest_cache .mypy_cache .ruff_cache .hypothesis build site *.egg-info
