"""Painted defects change what they should and nothing else, and every change is one."""

from __future__ import annotations

import numpy as np
import pytest

from inferpool.recipes.textures import KINDS, SIDE, TEST_EVERY, cases, painted, pieces

WALL = np.random.default_rng(1).integers(60, 180, (120, 512)).astype(np.uint8)
GRAVEL = np.random.default_rng(2).integers(0, 255, (120, 512)).astype(np.uint8)


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_a_defect_is_painted_into_its_piece(kind: int) -> None:
    plain = pieces(WALL, (0, 256), TEST_EVERY)
    kinds = np.where(np.arange(len(plain)) % 2, kind, 0)
    random = np.random.default_rng(3)
    found = painted(plain, pieces(GRAVEL, (0, 256), TEST_EVERY), kinds, random)
    changed = (found != plain).any(axis=(1, 2))
    assert not changed[kinds == 0].any()
    assert changed[kinds > 0].all()
    assert found.dtype == np.uint8


def test_pieces_stay_in_their_columns_and_kinds_take_turns() -> None:
    rows = pieces(WALL, (384, 512), TEST_EVERY)
    assert rows.shape[1:] == (SIDE, SIDE)
    assert np.array_equal(rows[0], WALL[:SIDE, 384 : 384 + SIDE])
    _, kinds = cases(WALL, GRAVEL, (384, 512), (1, 2, 3))
    assert set(kinds) == {0, 1, 2, 3}
    assert (kinds > 0).mean() == 0.5
