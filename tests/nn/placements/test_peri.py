"""Its layers are those of the sandwich (test_goldens.py); its ends are its own."""

import pytest


@pytest.mark.parametrize(
    "placement, has_norm",
    [("peri", True), ("peri(use_embedding_norm=False)", False), ("sandwich", False)],
)
def test_a_norm_on_the_embedding(small_variables, placement, has_norm):
    names = small_variables(placement=placement)
    assert ("params/embedding_norm/gain" in names) == has_norm
    assert "params/final_norm/gain" in names
