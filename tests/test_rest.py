"""REST: devices, history, aggregates, events, in pages."""

import time

import pytest

MINUTE = int(time.time()) // 60 * 60 - 3600


@pytest.fixture(scope="module")
def filled(server):
    """A device with 250 readings of each of two metrics, ten a minute."""
    server.post_event("rest", [{"n": n, "t": f"text {n}", "ts": MINUTE + n * 6} for n in range(250)])
    server.wait_rows("SELECT 1 FROM raw_metrics WHERE device_id = 'rest'", 500)
    return server


def get(server, path, **parameters):
    answer = server.get(path, params=parameters)
    assert answer.status_code == 200, f"{answer.status_code}: {answer.text}"
    return answer.json()


def pages(server, path, field, **parameters):
    """All rows over all pages, and how many pages there were."""
    rows, cursor, count = [], None, 0
    while True:
        answer = get(server, path, **parameters, **({"cursor": cursor} if cursor else {}))
        rows += answer[field]
        cursor, count = answer["next_cursor"], count + 1
        if not cursor:
            return rows, count


@pytest.mark.parametrize("limit", [1000, 100, 7])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_history_in_pages(filled, limit, order):
    path = "/api/v1/devices/rest/history"
    rows, count = pages(filled, path, "readings", limit=limit, order=order, metric="n")
    expected = list(range(250)) if order == "asc" else list(reversed(range(250)))
    assert [row["value"] for row in rows] == expected
    assert count == -(-250 // limit)


def test_history_of_a_stretch_of_time(filled):
    path = "/api/v1/devices/rest/history"
    rows, _ = pages(filled, path, "readings", **{"from": MINUTE + 60, "to": MINUTE + 120, "order": "asc"})
    assert [row["value"] for row in rows if row["metric"] == "n"] == list(range(10, 20))
    assert [row["text"] for row in rows if row["metric"] == "t"] == [f"text {n}" for n in range(10, 20)]


@pytest.mark.parametrize(("width", "seconds"), [("1m", 60), ("5m", 300), ("1h", 3600)])
def test_aggregates_in_buckets(filled, width, seconds):
    answer = get(filled, "/api/v1/devices/rest/aggregates", bucket=width, metric="n")
    expected = {}
    for n in range(250):
        start = (MINUTE + n * 6) // seconds * seconds
        expected.setdefault(start, []).append(n)
    assert answer["bucket_seconds"] == seconds
    assert [(row["min"], row["max"], row["avg"], row["count"]) for row in answer["aggregates"]] == [
        (min(values), max(values), sum(values) / len(values), len(values)) for values in expected.values()
    ]


def test_events_as_received(filled):
    rows, _ = pages(filled, "/api/v1/devices/rest/events", "events", limit=100, order="asc")
    assert len(rows) == 250
    assert rows[0]["payload_encoding"] == "text" and '"n": 0' in rows[0]["payload"]
    assert len({(row["log_partition"], row["log_offset"]) for row in rows}) == 250


def test_devices_in_pages(filled):
    names = [f"page-{n:02}" for n in range(25)]
    for name in names:
        filled.post_event(name, {"n": 1})
    filled.wait_rows("SELECT device_id FROM devices WHERE device_id LIKE 'page-%'", 25)
    rows, count = pages(filled, "/api/v1/devices", "devices", limit=10)
    listed = [row["device_id"] for row in rows]
    assert listed == sorted(set(listed)) and set(names) <= set(listed)
    assert count > 2


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("/api/v1/devices/rest/history", {"from": "yesterday"}),
        ("/api/v1/devices/rest/history", {"limit": "many"}),
        ("/api/v1/devices/rest/history", {"order": "up"}),
        ("/api/v1/devices/rest/history", {"cursor": "made up"}),
        ("/api/v1/devices/rest/history", {"form": "-1h"}),
        ("/api/v1/devices/rest/aggregates", {"bucket": "90s"}),
        ("/api/v1/devices/a%2Fb/history", {}),
    ],
)
def test_bad_parameters_are_explained(server, path, parameters):
    answer = server.get(path, params=parameters)
    assert answer.status_code == 400, answer.text
    assert answer.json()["message"]


def test_quotes_in_parameters_are_text(filled):
    for text in ("' OR '1'='1", 'x"; DROP TABLE raw_events', "%", "_", "n'--"):
        rows = get(filled, "/api/v1/devices/rest/history", metric=text)["readings"]
        assert rows == [], text
    assert get(filled, "/api/v1/devices/%27%20OR%201%3D1/history")["readings"] == []


def test_patterns_of_metrics(filled):
    assert len(get(filled, "/api/v1/devices/rest/history", metric="*", limit=10_000)["readings"]) == 500
    assert len(get(filled, "/api/v1/devices/rest/history", metric="t*", limit=10_000)["readings"]) == 250


def test_status_tells_how_the_platform_is(filled):
    status = get(filled, "/api/v1/status")
    assert status["ready"] is True and status["not_ready"] == []
    assert status["devices"] >= 1 and status["metrics"] >= 2
