"""A few seeds in every test run; `make sim ARGS="--seeds 1000"` for more."""

import logging

import pytest

from tests.sim.run import simulate


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5, 6])
def test_every_invariant_holds_whatever_breaks(seed: int) -> None:
    logging.disable(logging.CRITICAL)  # what breaks is meant to
    try:
        result = simulate(seed)
    finally:
        logging.disable(logging.NOTSET)
    assert result.findings == [], f'again: make sim ARGS="--seed {seed}"'
    assert result.calls > 1000
    assert result.statuses[200] > 500


def test_the_same_seed_is_the_same_run() -> None:
    logging.disable(logging.CRITICAL)
    try:
        first, second = simulate(7), simulate(7)
    finally:
        logging.disable(logging.NOTSET)
    assert first == second
