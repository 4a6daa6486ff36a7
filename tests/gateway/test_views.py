"""Small parts of what is shown: numbers, filters, rates, metrics, log lines."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

import pytest

from grid.display import printable
from grid.gateway.dashboard import show_bytes, show_column, sparkline, tag_filters
from grid.gateway.router import LinkView
from grid.gateway.traffic import HISTORY, TrafficMeter
from grid.gateway.views import show_time
from grid.ids import PeerId
from grid.telemetry import METRICS, Metrics
from grid.wire.messages import ColumnCard


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9994, "9.99 kB"),
        (9996, "10.0 kB"),
        (99_960, "100 kB"),
        (999_400, "999 kB"),
        (999_600, "1.00 MB"),
        (1_234_567_890, "1.23 GB"),
        (5e15, "5000 TB"),
    ],
)
def test_bytes_have_three_digits(amount: float, text: str) -> None:
    assert show_bytes(amount).replace("\u00a0", " ") == text


def test_columns_are_described_by_what_the_owner_says() -> None:
    age = ColumnCard(name="age", kind="number", role="feature", minimum=0.0, maximum=110.0)
    housing = ColumnCard(name="housing", kind="category", role="target", categories=("own", "rent"))
    assert show_column(age) == "number, 0 to 110"
    assert show_column(housing) == "category, 2 values, target"
    assert show_column(ColumnCard(name="x", kind="<b>", role="feature")) == "?"


def test_tag_filters_add_and_take_away_and_survive_odd_characters() -> None:
    odd = "#a&b=c d/é?"
    tags, left = tag_filters({"#x": 5, odd: 2}, [odd, "#gone"])
    by_name = {tag.name: tag for tag in tags}
    assert left == 0 and [tag.name for tag in tags] == [odd, "#gone", "#x"]
    assert parse_qs(urlsplit(by_name["#x"].link).query) == {"tag": [odd, "#gone", "#x"]}
    assert parse_qs(urlsplit(by_name["#gone"].link).query) == {"tag": [odd]}
    assert by_name["#gone"].datasets == 0 and by_name["#gone"].chosen and not by_name["#x"].chosen


def test_many_tags_are_cut() -> None:
    tags, left = tag_filters({f"#{number}": 1 for number in range(100)}, [])
    assert (len(tags), left) == (60, 40)


def test_the_sparkline_stays_in_its_box() -> None:
    for history in ([0.0] * HISTORY, [float(number) ** 3 for number in range(HISTORY)]):
        points = re.findall(r"(\d+) (-?[\d.]+)", sparkline(history)["line"])
        assert len(points) == HISTORY and points[-1][0] == "590"
        assert all(0 <= float(y) <= 80 for _, y in points)


def link(number: int, moved: int) -> LinkView:
    return LinkView(number, PeerId("a"), PeerId("b"), 0.0, moved, 0)


def test_rates_come_from_totals() -> None:
    meter = TrafficMeter()
    meter.sample(10.0, 0, [link(1, 0)])
    meter.sample(12.0, 3000, [link(1, 1000), link(2, 2000)])
    assert meter.rate == 1500.0 and meter.link_rate(1) == 500.0 and meter.link_rate(2) == 1000.0
    assert meter.link_rate(99) == 0.0
    meter.sample(12.0, 5000, [])  # No time has passed: no rate can be told.
    assert meter.rate == 1500.0


def test_a_quiet_relay_reports_no_changes() -> None:
    meter = TrafficMeter()
    for second in range(3):
        meter.sample(second, 0, [])
    assert meter.version == 0
    meter.sample(3, 100, [])
    for second in range(4, 4 + HISTORY):
        meter.sample(second, 100, [])
    settled = meter.version
    meter.sample(100, 100, [])
    assert meter.version == settled > 0


def test_time_is_utc() -> None:
    assert show_time(0.9) == "1970-01-01T00:00:00Z"


def test_metrics_are_apart_from_each_other_and_from_the_process() -> None:
    first, second = Metrics(), Metrics()
    first.count("grid_http_requests_total", status="200")
    first.set("grid_links", 3)
    first.raise_to("grid_relayed_bytes_total", 10)
    first.raise_to("grid_relayed_bytes_total", 25)
    text = first.render().decode()
    assert 'grid_http_requests_total{status="200"} 1.0' in text and "grid_links 3.0" in text
    assert "grid_relayed_bytes_total 25.0" in text
    assert "grid_relayed_bytes_total 0.0" in second.render().decode()


def test_metric_names_follow_the_rules() -> None:
    for name, metric in METRICS.items():
        assert re.fullmatch(r"grid_[a-z_]+", name) and metric.text.endswith(".")
        assert name.endswith("_total") == (metric.kind == "counter")
    with pytest.raises(KeyError):
        Metrics().count("grid_unknown_total")


def test_text_of_peers_is_shown_on_one_line() -> None:
    assert printable("a\nb\x1b[31m\u202e") == "a\\nb\\x1b[31m\\u202e"
    assert len(printable("x" * 5000)) == 200
