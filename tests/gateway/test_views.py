"""Small parts of what is shown: numbers, filters, pages, charts, rates, metrics, log lines."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

import pytest

from grid.display import printable
from grid.gateway.charts import HEIGHT, WIDTH, chart, round_bytes, round_count
from grid.gateway.dashboard import dataset_link, grouped, list_link, show_bytes, show_rate, show_span, tag_filters
from grid.gateway.router import LinkView
from grid.gateway.traffic import BUSY, MINUTES, SECONDS, Sample, TrafficMeter, condensed
from grid.gateway.views import Page, show_time
from grid.ids import PeerId
from grid.telemetry import METRICS, Metrics


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


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0 s"), (59.9, "59 s"), (60, "1 min"), (7199, "1 h"), (90_000, "1 d"), (9e6, "104 d")]
)
def test_spans_are_in_their_largest_unit(seconds: float, text: str) -> None:
    assert show_span(seconds).replace("\u00a0", " ") == text


def test_rates_have_as_many_digits_as_they_need() -> None:
    assert [show_rate(rate) for rate in (0, 0.04, 0.5, 3, 3.14, 1234.5)] == ["0", "0.04", "0.50", "3", "3.1", "1\u202f234"]


def test_ids_are_shown_in_groups_and_whole() -> None:
    peer = PeerId("abcdefghijklmnopqrstuvwxyz")
    assert grouped(peer) == ["abcde", "fghij", "klmno", "pqrst", "uvwxyz"] and grouped(PeerId("")) == []


def test_tag_filters_add_and_take_away_and_survive_odd_characters() -> None:
    odd = "#a&b=c d/é?"
    tags = tag_filters([("#x", 5), (odd, 2)], [odd, "#gone"], query="a b")
    by_name = {tag.name: tag for tag in tags}
    assert [tag.name for tag in tags] == [odd, "#gone", "#x"]
    assert parse_qs(urlsplit(by_name["#x"].link).query) == {"q": ["a b"], "tag": [odd, "#gone", "#x"]}
    assert parse_qs(urlsplit(by_name["#gone"].link).query) == {"q": ["a b"], "tag": [odd]}
    assert by_name["#gone"].datasets == 0 and by_name["#gone"].chosen and not by_name["#x"].chosen


def test_many_tags_are_cut() -> None:
    assert len(tag_filters([(f"#{number}", 1) for number in range(100)], [])) == 30


def test_links_hold_any_name_and_leave_out_what_is_usual() -> None:
    link = dataset_link("alice", "a/b?c#d%2F é\"'<>")
    assert link == "/datasets/alice/a%2Fb%3Fc%23d%252F%20%C3%A9%22%27%3C%3E"
    assert list_link("/nodes", page=1, q="", sort="") == "/nodes"
    assert list_link("/nodes", page=2, q="a&b") == "/nodes?page=2&q=a%26b"


@pytest.mark.parametrize(
    ("number", "total", "shown"),
    [
        (1, 0, (1, 1, [])),
        (1, 1, (1, 1, [0])),
        (1, 3, (1, 1, [0, 1, 2])),
        (2, 7, (2, 3, [3, 4, 5])),
        (3, 7, (3, 3, [6])),
        (10**9, 7, (3, 3, [6])),
    ],
)
def test_a_page_is_always_one_that_exists(number: int, total: int, shown: tuple[int, int, list[int]]) -> None:
    page = Page.of(range(total), number, 3)
    assert (page.number, page.pages, list(page.items)) == shown and page.total == total


@pytest.mark.parametrize("values", [[], [0.0], [5.0], [float(number) ** 3 for number in range(600)], [0.0] * 300])
def test_charts_stay_in_their_box_and_end_now(values: list[float]) -> None:
    made = chart(values, 300, round_bytes)
    points = re.findall(r"(-?[\d.]+) (-?[\d.]+)", made.line)
    assert len(points) == min(len(values), 300) and made.top >= max(1000.0, made.peak)
    assert all(0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT for x, y in points)
    if values:
        assert float(points[-1][0]) == WIDTH and made.now == values[-1]


def test_axes_end_at_round_numbers() -> None:
    assert [round_count(value) for value in (0, 1, 2, 2.1, 4.1, 11, 40, 41, 81)] == [2, 2, 2, 4, 6, 20, 40, 60, 100]
    assert round_bytes(3) == 1000 and round_bytes(1_500_000) == 2_000_000


def link(number: int, moved: int) -> LinkView:
    return LinkView(number, PeerId("a"), PeerId("b"), 0.0, moved, 0, 0)


def take(meter: TrafficMeter, now: float, moved: int, *links: LinkView, frames: int = 0, connections: int = 0) -> None:
    meter.sample(now, wall=1000 + now, moved=moved, frames=frames, connections=connections, links=links)


def test_rates_come_from_totals() -> None:
    meter = TrafficMeter()
    take(meter, 10.0, 0, link(1, 0))
    take(meter, 12.0, 3000, link(1, 1000), link(2, 2000), frames=8, connections=3)
    assert meter.rate == 1500.0 and meter.link_rate(1) == 500.0 and meter.link_rate(2) == 1000.0
    assert meter.seconds[-1] == Sample(wall=1012.0, bytes_per_s=1500.0, frames_per_s=4.0, connections=3, links=2)
    assert meter.link_rate(99) == 0.0 and meter.history(3) == [0.0, 0.0, 1500.0]
    take(meter, 12.0, 5000)  # No time has passed: no rate can be told.
    assert meter.rate == 1500.0


def test_a_quiet_relay_reports_no_changes_but_a_connection_is_one() -> None:
    meter = TrafficMeter()
    for second in range(3):
        take(meter, second, 0)
    assert meter.version == 0
    take(meter, 3, 100, frames=1)
    for second in range(4, 4 + BUSY):
        take(meter, second, 100, frames=1)
    settled = meter.version
    take(meter, 100, 100, frames=1)
    assert meter.version == settled > 0
    take(meter, 101, 100, frames=1, connections=1)
    assert meter.version == settled + 1


def test_ten_minutes_of_seconds_and_a_day_of_minutes_are_kept() -> None:
    meter = TrafficMeter()
    for second in range(2 * 86_400):
        take(meter, second, second * 10, frames=second, connections=second // 60 % 7)
    assert (len(meter.seconds), len(meter.minutes)) == (SECONDS, MINUTES)
    assert {round(sample.bytes_per_s, 6) for sample in meter.minutes} == {10.0}
    hours = condensed(meter.minutes, 3600)
    assert 24 <= len(hours) <= 25 and all(hour.connections == 6 for hour in hours)
    assert [sample.wall for sample in condensed(meter.seconds, 60)][-2:] == [2896 * 60 - 1, 1000 + 2 * 86_400 - 1]


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
