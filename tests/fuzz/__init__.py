"""Fuzzing: hostile and merely wrong inputs for everything that moesim reads, by hypothesis and by coverage (atheris).

    python -m tests.fuzz                                  the targets
    python -m tests.fuzz scenario --runs 100000           by hypothesis
    pip install 'moesim[fuzz]' && python -m tests.fuzz scenario --runs 100000 --atheris

A target is one function `bytes -> None` and its seeds, real files of its kind (`targets`, `seeds`). Both generators
change seeds by the same rules (`mutate`); the coverage-guided one also keeps what reached new code. Every input is held
to the same limits (`guard`). CI runs 2,000 inputs a target (`tests/test_fuzz.py`).
"""
