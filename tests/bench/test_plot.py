"""The plot is well-formed, and to scale."""

from __future__ import annotations

from xml.etree import ElementTree

from bench.plot import BARS, svg
from bench.report import Findings
from bench.samples import FLOOR, Sample

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*samples: Sample) -> ElementTree.Element:
    return ElementTree.fromstring(svg(Findings(descriptions={"ours": "this project"}, samples=list(samples))))


def cost(contender: str, value: float, turn: int = 0) -> Sample:
    return Sample("broker", "1 & 2", contender, "cpu_us", value, turn)


def test_a_bar_is_as_long_as_the_median_and_its_line_as_the_range() -> None:
    picture = drawn(cost(FLOOR, 25.0), cost("ours", 50.0, 0), cost("ours", 100.0, 1))
    bars = [float(bar.attrib["width"]) for bar in picture.findall(f"{SVG}rect")[1:]]
    ranges = [float(line.attrib["x2"]) - float(line.attrib["x1"]) for line in picture.findall(f"{SVG}line")]
    assert bars == [BARS / 4, BARS * 3 / 4]
    assert ranges == [0.0, BARS / 2]


def test_names_are_escaped_and_ratios_shown() -> None:
    texts = [element.text or "" for element in drawn(cost("ours", 50.0)).findall(f"{SVG}text")]
    assert "Broker to device: 1 & 2" in texts
    assert "50.0  (1.00 x)" in texts


def test_a_contender_without_the_metric_is_said_not_to_have_been_measured() -> None:
    picture = drawn(cost("ours", 50.0), Sample("broker", "1 & 2", "theirs", "lost", 1.0))
    assert [element.text for element in picture.findall(f"{SVG}text")].count("not measured") == 1


def test_nothing_at_all_is_a_picture_too() -> None:
    assert drawn().tag == f"{SVG}svg"
