# One command each; the first one installs into .venv, later ones install nothing again.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: help install train test test-notebooks slow gpu gpu-check gpu-speed gpu-train lab edit docs slides readme clean

help:
	@echo "make train   train on the embedded cohort, about 10 minutes on two quiet CPU cores; leaves runs/train_panda.ipynb"
	@echo "make test    the whole test suite"
	@echo "make test-notebooks  the course, every exercise, every lesson from the wheel alone, the studies as trials, the site"
	@echo "make slow    the tests that take longer"
	@echo "make gpu     what a GPU must tell, three calls of at most nine minutes; one each: make gpu-check, gpu-speed, gpu-train"
	@echo "make lab     copy the lessons into lessons/, exercises unsolved, and open the first one in JupyterLab"
	@echo "make edit    open the notebooks themselves, for contributors"
	@echo "make docs    build the site into _docs, two to three minutes"
	@echo "make slides  make slides of lessons and sessions into _docs/slides"
	@echo "make readme  write README.md from nbs/index.ipynb"
	@echo "make clean   strip the notebooks of what a commit should not hold, and export the modules"

$(INSTALLED): settings.ini setup.py
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

install: $(INSTALLED)

train: $(INSTALLED)
	@mkdir -p runs
	$(BIN)/papermill nbs/train_panda.ipynb runs/train_panda.ipynb
	@echo "The executed notebook lies at $(CURDIR)/runs/train_panda.ipynb"

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --skip_file_glob 'train_*' --skip_file_re '^([_.]|[1-9]_|(live|explorers|slide)\.)'   # what is left out: other tests
	$(BIN)/python -m pytest tests -n 2 --dist worksteal -m 'not slow and not browser and not notebooks'
	$(BIN)/python -m pytest tests -m 'browser and not slow'   # alone: a page answers in time only where cores are free

test-notebooks: $(INSTALLED)
	$(BIN)/python -m pytest tests -n 2 --dist worksteal -m notebooks

slow: $(INSTALLED)
	$(BIN)/python -m pytest tests -m slow

# Installs nothing: a machine that is lent has Python, torch and what this library needs, and reaches no network.
# Other folders and minutes: make gpu-speed GPU_OUT=/tmp/out GPU_MINUTES=5
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
GPU_OUT ?= nbs/studies/gpu
GPU_MINUTES ?= 8

gpu: gpu-check gpu-speed gpu-train

gpu-check gpu-speed gpu-train: gpu-%:
	$(GPU_PYTHON) -m patchgd_nb.experiment.gpu $* --out $(GPU_OUT) --minutes $(GPU_MINUTES) $(GPU_OPTIONS)

lab: $(INSTALLED)
	$(BIN)/patchgd copy lessons
	$(BIN)/jupyter lab --ip=127.0.0.1 $(if $(filter 0,$(shell id -u)),--allow-root) lessons/00_patches.ipynb

edit: $(INSTALLED)
	$(BIN)/jupyter lab --ip=127.0.0.1 $(if $(filter 0,$(shell id -u)),--allow-root) nbs/00_patches.ipynb

docs: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python docs/make_site.py
	@echo "The site begins at $(CURDIR)/_docs/index.html"

slides: $(INSTALLED)
	$(BIN)/python docs/slides.py

readme: $(INSTALLED)
	$(BIN)/python .ci/readme.py

clean: $(INSTALLED)
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export
