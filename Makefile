# What a developer does with a checkout.  As root, on Debian 12 or later; whatever is missing
# is installed first, by `python -m lab install`, which says what (nothing when all is there).

PYTHON ?= python3
VENV := .venv/bin

help:
	@echo 'make demo      copy a live md array with a file system, and prove the copy'
	@echo '               (in a guest where this kernel has no device-mapper)'
	@echo 'make test      everything: linters, unit tests, both lab guests; ends with one line'
	@echo 'make unit      unit and contract tests only'
	@echo 'make lint      ruff, mypy, import-linter'
	@echo 'make lab-uml   the lab tests under user-mode Linux'
	@echo 'make lab-qemu  the proofs under QEMU with the kernel of Debian'
	@echo 'make soak      kill processes and cut power for MINUTES=30, then one table'
	@echo 'make shell     a shell in a guest (ENGINE=uml or qemu)'
	@echo 'make bench     the benchmarks, in a guest'
	@echo 'make install   only install what is missing'
	@echo 'make man       the man page, and completion for bash and zsh, in dist/man'
	@echo 'make deb       the Debian package, in dist'
	@echo 'make clean     remove what these made in the checkout'
	@echo 'Installed where missing: from Debian: the tools of device-mapper, LVM, md and file'
	@echo 'systems, fio, user-mode-linux, QEMU (test, lab-qemu); from PyPI, in .venv: setup.cfg.'

install:
	@$(PYTHON) -m lab install

install-uml:
	@$(PYTHON) -m lab install --engine uml

install-qemu:
	@$(PYTHON) -m lab install --engine qemu

demo: install-uml
	@$(VENV)/dmcopy demo

test: install
	@$(VENV)/python -m lab.suite

unit: install-uml
	$(VENV)/python -m pytest -q tests/unit tests/contract

lint: install-uml
	$(VENV)/ruff check dmcopy tests lab benchmarks
	$(VENV)/ruff format --check dmcopy tests lab benchmarks
	$(VENV)/mypy --strict dmcopy tests lab benchmarks
	$(VENV)/lint-imports

lab-uml: install-uml
	@$(VENV)/python -m lab.suite --engine uml

lab-qemu: install-qemu
	@$(VENV)/python -m lab.suite --engine qemu

MINUTES ?= 30
soak: install-uml
	@$(VENV)/python -m lab.soak --minutes $(MINUTES)

ENGINE ?= uml
shell: install-$(ENGINE)
	@$(VENV)/python -m lab shell --engine $(ENGINE)

bench: install-uml
	@$(VENV)/python -m benchmarks copy

man: install-uml
	@$(VENV)/python -m lab.manual dist/man

deb: install-uml
	@$(VENV)/python -m lab.deb dist

clean:
	rm -rf .lab .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
	find dmcopy lab tests -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help install install-uml install-qemu demo test unit lint lab-uml lab-qemu soak shell bench man deb clean
