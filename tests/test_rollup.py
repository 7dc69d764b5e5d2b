"""`aggregated_metrics`: one-minute buckets that are right at every moment, late rows and restarts included."""

import datetime
import random

import pytest

FLUSHES = "[history]\nflush_interval_ms = 1000\n"


def an_hour_ago():
    """The start of a minute about an hour ago."""
    now = datetime.datetime.now(datetime.UTC).replace(second=0, microsecond=0)
    return now - datetime.timedelta(hours=1)


def at(minute, seconds):
    return (minute + datetime.timedelta(seconds=seconds)).isoformat()


def buckets(server, device, metric="v"):
    return server.sql(
        "SELECT date_part('epoch', time_bucket), avg_value, min_value, max_value, count FROM aggregated_metrics"
        f" WHERE device_id = '{device}' AND metric_name = '{metric}' ORDER BY time_bucket"
    )


def post(server, device, minute, values):
    """Values at the seconds 0, 1, … of a minute."""
    server.post_event(device, [{"v": value, "ts": at(minute, n)} for n, value in enumerate(values)])


def wait_raw(server, device, count):
    server.wait_rows(f"SELECT 1 FROM raw_metrics WHERE device_id = '{device}'", count)


def test_each_minute_has_its_bucket(server, device):
    minute = an_hour_ago()
    next_minute = minute + datetime.timedelta(minutes=1)
    post(server, device, minute, [1, 2, 3, 10])
    post(server, device, next_minute, [-5.5])
    wait_raw(server, device, 5)
    assert buckets(server, device) == [
        (minute.timestamp(), 4.0, 1.0, 10.0, 4),
        (next_minute.timestamp(), -5.5, -5.5, -5.5, 1),
    ]


def test_edges_of_a_minute(server, device):
    minute = an_hour_ago()
    server.post_event(device, [{"v": 1, "ts": at(minute, 59.999999)}, {"v": 2, "ts": at(minute, 60)}])
    wait_raw(server, device, 2)
    assert [(row[0], row[4]) for row in buckets(server, device)] == [
        (minute.timestamp(), 1),
        (minute.timestamp() + 60, 1),
    ]


def test_the_current_minute_is_there_at_once(server, device):
    server.post_event(device, {"v": 7})
    wait_raw(server, device, 1)
    ((_, average, _, _, count),) = buckets(server, device)
    assert (average, count) == (7.0, 1)


def test_late_rows_merge(server, device):
    minute = an_hour_ago()
    later = minute + datetime.timedelta(minutes=30)
    post(server, device, minute, [1, 3])
    post(server, device, later, [100])
    post(server, device, minute, [5, 7])
    post(server, device, later, [300])
    wait_raw(server, device, 6)
    assert buckets(server, device) == [
        (minute.timestamp(), 4.0, 1.0, 7.0, 4),
        (later.timestamp(), 200.0, 100.0, 300.0, 2),
    ]


def test_only_numbers_are_aggregated(server, device):
    server.post_event(device, {"n": 1.5, "on": True, "text": "a", "none": None, "ts": at(an_hour_ago(), 0)})
    wait_raw(server, device, 3)
    rows = server.sql(
        f"SELECT metric_name, avg_value, count FROM aggregated_metrics WHERE device_id = '{device}' ORDER BY metric_name"
    )
    assert rows == [("n", 1.5, 1), ("on", 1.0, 1)]


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_raw_rows_over_flushes_and_restarts(new_server, seed):
    """Any order of minutes, flushes, kills and stops: the rollup is that of the raw rows."""
    chance = random.Random(seed)
    server = new_server(config=FLUSHES).start()
    minute = an_hour_ago()
    total = 0
    for number in range(6):
        for _ in range(chance.randrange(1, 6)):
            values = [chance.randrange(-1000, 1000) for _ in range(chance.randrange(1, 50))]
            post(server, f"d{chance.randrange(3)}", minute + datetime.timedelta(minutes=chance.randrange(4)), values)
            total += len(values)
        server.wait_rows("SELECT 1 FROM raw_metrics", total)
        compare_with_raw(server)
        if number % 3 == 1:
            server.restart()
        elif number % 3 == 2:
            server.stop()
            server.start()
    server.wait_rows("SELECT 1 FROM raw_metrics", total)
    compare_with_raw(server)


def compare_with_raw(server):
    # Whole numbers: sums are exact in any order.
    expected = server.sql(
        "SELECT device_id, date_trunc('minute', timestamp) AS minute, avg(metric_value), min(metric_value),"
        " max(metric_value), count(*) FROM raw_metrics GROUP BY 1, 2 ORDER BY 1, 2"
    )
    rolled = server.sql(
        "SELECT device_id, time_bucket, avg_value, min_value, max_value, count FROM aggregated_metrics ORDER BY 1, 2"
    )
    assert rolled == expected and expected
