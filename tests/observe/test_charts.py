"""Charts: true to their numbers, and readable in grey and by the colour-blind."""

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from reslab.observe import charts, drawing, scales, svg

SVG = "{http://www.w3.org/2000/svg}"
WORDS = {"identifier": "one", "title": "A & B", "description": "what is shown"}


def lines(series, **options):
    options = {"x_label": "x", "y_label": "y", **options}
    chart = charts.LineChart(series=series, **WORDS, **options)
    return ElementTree.fromstring(svg.draw(chart))


def texts(root):
    return [element.text for element in root.iter(f"{SVG}text")]


def lightness(colour):
    """CIE 1976 L* of an sRGB colour."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
    ]
    y = float(np.dot([0.2126, 0.7152, 0.0722], linear))
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


def test_the_colour_map_is_even_in_lightness():
    values = np.array([lightness(scales.colour(i / 32)) for i in range(33)])
    steps = np.diff(values)
    assert (steps > 0.5 * steps.mean()).all()
    assert (steps < 1.7 * steps.mean()).all()
    assert values[-1] - values[0] > 70


@pytest.mark.parametrize(
    "low, high", [(0, 1), (1.83, 2.21), (-3e-7, 5e-7), (0, 123456), (2, 2.0001)]
)
def test_ticks_are_round_and_within(low, high):
    found = drawing.ticks(low, high)
    assert 3 <= len(found) <= 8
    assert low - 1e-12 <= found[0] < found[-1] <= high * (1 + 1e-9) + 1e-12
    step = (found[-1] - found[0]) / (len(found) - 1)
    mantissa = step / 10 ** math.floor(math.log10(step * 1.0001))
    assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-6


@pytest.mark.parametrize("low, high", [(1, 10), (55, 281), (3e11, 8e18), (2.0, 2.4)])
def test_log_ticks_are_several_and_within(low, high):
    found = drawing.log_ticks(low, high)
    assert 2 <= len(found) <= 8
    assert low * 0.998 <= found[0] < found[-1] <= high * 1.002


def test_a_line_goes_through_its_points():
    x, y = [0.0, 5.0, 10.0], [1.0, 3.0, 2.0]
    root = lines([charts.Series("a", x, y)])
    (path,) = [p for p in root.iter(f"{SVG}path") if p.get("fill") == "none"]
    points = np.array(
        [[float(v) for v in p.split()] for p in re.split("[ML]", path.get("d"))[1:]]
    )
    # Affine in both directions, up being down on the page.
    np.testing.assert_allclose(
        points[1, 0] - points[0, 0], points[2, 0] - points[1, 0], atol=0.11
    )
    rise = (points[1, 1] - points[0, 1]) / (points[2, 1] - points[1, 1])
    np.testing.assert_allclose(rise, (3 - 1) / (2 - 3), rtol=0.01)
    assert points[1, 1] < points[0, 1]


def test_what_is_no_number_breaks_a_line_and_warps_nothing():
    y = [1.0, math.nan, 2.0, None, 3.0, 2.5]
    root = lines([charts.Series("a", list(range(6)), y)])
    (path,) = [p for p in root.iter(f"{SVG}path") if p.get("fill") == "none"]
    assert path.get("d").count("M") == 3
    assert "nan" not in ElementTree.tostring(root, encoding="unicode")


def test_bands_lines_and_names_are_there():
    x, y = [1.0, 2.0], [1.0, 2.0]
    root = lines(
        [charts.Series("a <b>", x, y, [0.5, 1.5], [1.5, 2.5]), charts.Series("c", x, y)]
    )
    assert sum("fill-opacity" in p.attrib for p in root.iter(f"{SVG}path")) == 1
    assert {"a <b>", "c", "A & B", "x", "y"} <= set(texts(root))
    assert root.find(f"{SVG}title").text == "A & B"
    assert root.find(f"{SVG}desc").text == "what is shown"
    assert root.get("role") == "img"


def test_twenty_lines_differ_without_colour():
    styles = {
        (
            drawing.DASHES[i % len(drawing.DASHES)],
            drawing.MARKERS[i % len(drawing.MARKERS)],
        )
        for i in range(20)
    }
    assert len(styles) == 20


def test_large_numbers_are_given_as_powers():
    root = lines([charts.Series("a", [0, 4e9], [1, 2])], x_label="tokens")
    assert "tokens (\u00d710\u2079)" in texts(root)
    assert "4" in texts(root)


def test_a_logarithmic_axis_leaves_out_what_it_cannot_show():
    series = charts.Series("a", [0, 1, 10, 100], [4, 3, 2, 1])
    root = lines([series], is_log_x=True)
    (path,) = [p for p in root.iter(f"{SVG}path") if p.get("fill") == "none"]
    xs = [float(p.split()[0]) for p in re.split("[ML]", path.get("d"))[1:]]
    assert len(xs) == 3
    np.testing.assert_allclose(xs[1] - xs[0], xs[2] - xs[1], atol=0.11)


def test_a_logarithmic_height_keeps_ratios_and_breaks_at_zero():
    series = charts.Series("a", [0, 1, 2, 3], [1, 10, 100, 0], [0] * 4, [1e9] * 4)
    root = lines([series], is_log_y=True, y_range=(1, 100))
    (path,) = [p for p in root.iter(f"{SVG}path") if p.get("fill") == "none"]
    ys = [float(p.split()[1]) for p in re.split("[ML]", path.get("d"))[1:]]
    assert len(ys) == 3
    np.testing.assert_allclose(ys[0] - ys[1], ys[1] - ys[2], atol=0.11)
    assert {"1", "10", "100"} <= set(texts(root))
    (band,) = [p for p in root.iter(f"{SVG}path") if "fill-opacity" in p.attrib]
    edges = [float(v) for v in re.findall(r"[\d.]+ ([\d.]+)", band.get("d"))]
    # It ends at the frame.
    assert min(edges) >= 15 and max(edges) <= ys[0] + 10


def test_a_few_layers_are_counted_in_whole_numbers():
    found = texts(lines([charts.Series("a", [0, 1, 2], [0.1, 0.2, 0.3])]))
    assert {"0", "1", "2"} <= set(found) and "0.5" not in found and "1.5" not in found


def test_a_long_name_is_wrapped_and_not_cut():
    name = "residual=hyper(streams=4) learning_rate=0.001 depth=12 placement=mix"
    root = lines([charts.Series(name, [0, 1], [1, 2])])
    assert " ".join(text for text in texts(root) if "=" in text) == name


def test_signed_values_are_white_at_zero():
    scale = scales.symmetric(scales.common_scale([-1.0, 0.0, 3.0]))
    assert (scale.low, scale.high) == (-3.0, 3.0)
    ends = [scale.colour(v) for v in (-3.0, 0.0, 3.0)]
    assert ends == ["#053061", "#f7f7f7", "#67001f"]
    halves = [
        lightness(scale.colour(3 * sign * i / 8)) for sign in (-1, 1) for i in range(9)
    ]
    assert (np.diff(np.reshape(halves, (2, 9))) < 0).all()
    assert scales.symmetric(scales.Scale(1.0, 3.0, False)).colour(1.0) == "#440154"


def test_nothing_to_show_is_still_a_chart():
    assert lines([]).get("viewBox")
    assert lines([charts.Series("a", [1.0], [2.0])]).get("viewBox")


def heat(values, scale):
    chart = charts.HeatMap(
        values=values,
        scale=scale,
        **WORDS,
        columns=[str(i) for i in range(len(values[0]))],
        rows=[str(i) for i in range(len(values))],
        x_label="step",
        y_label="layer",
    )
    return ElementTree.fromstring(svg.draw(chart))


def test_a_map_has_a_cell_for_every_number():
    values = [[1.0, 2.0, math.nan], [2.0, 3.0, None]]
    root = heat(values, scales.common_scale([1.0, 2.0, 3.0]))
    cells = {p.get("fill"): p.get("d").count("M") for p in root.iter(f"{SVG}path")}
    assert cells == {
        scales.colour(0): 1,
        scales.colour(32 / 63): 2,
        scales.colour(1): 1,
    }
    # The first row is the lowest.
    ys = {
        p.get("fill"): float(p.get("d").split()[1].split("h")[0])
        for p in root.iter(f"{SVG}path")
    }
    assert ys[scales.colour(0)] > ys[scales.colour(1)]


def test_a_common_scale_is_logarithmic_where_it_can_be():
    scale = scales.common_scale([1.0, 100.0, math.inf, None], is_logarithmic=True)
    assert scale == (1.0, 100.0, True)
    np.testing.assert_allclose(scale.share(10.0), 0.5)
    assert scale.share(0.0) is None
    # One zero does not spoil it for the others; without a positive value it is linear.
    scale = scales.common_scale([0.0, 1.0, 10.0], is_logarithmic=True)
    assert scale == (1.0, 10.0, True)
    assert not scales.common_scale([0.0, -1.0], is_logarithmic=True).is_logarithmic
    assert scales.common_scale([]).share(0.5) == 0.5


def test_the_key_has_numbers():
    bar = charts.colour_bar(scales.Scale(0.0, 3.0, False), identifier="k", label="norm")
    assert {"norm", "0", "1", "2", "3"} <= set(
        texts(ElementTree.fromstring(svg.draw(bar)))
    )


def test_intervals_are_drawn_about_zero():
    rows = [
        charts.Interval("a", 0.5, 0.25, 0.75),
        charts.Interval("b", -0.5, None, None),
        charts.Interval("c", None, None, None),
    ]
    chart = charts.IntervalChart(rows=rows, **WORDS, x_label="difference")
    root = ElementTree.fromstring(svg.draw(chart))
    dots = [float(c.get("cx")) for c in root.iter(f"{SVG}circle")]
    zero = next(
        float(line.get("x1"))
        for line in root.iter(f"{SVG}line")
        if line.get("stroke-dasharray")
    )
    assert dots[1] < zero < dots[0]
    np.testing.assert_allclose(dots[0] - zero, zero - dots[1], atol=0.15)
    assert "c: no figure" in texts(root)
