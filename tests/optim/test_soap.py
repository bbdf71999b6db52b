import pytest

from reslab.core.errors import ReslabError
from reslab.optim.soap import build


@pytest.mark.parametrize(
    "tag, kernels, options",
    [
        ("freq1", ("w2",), {"every": 1}),
        ("freq2", ("w2",), {"every": 2}),
        ("freq2_onesided_max12", ("w", "w2"), {"every": 2, "largest": 12}),
    ],
)
def test_is_the_authors(replay, turned, tag, kernels, options):
    made = build(3e-3, 0.01, turned(kernels, ("b",)), **options)
    replay("soap", tag, made, leaves=(*kernels, "b"), steps=6, atol=1e-5)


def test_mistakes():
    with pytest.raises(ReslabError, match="every: expected at least 1; got 0"):
        build(0.1, every=0)
