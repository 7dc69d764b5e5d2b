"""Bad payloads are data: kept raw, listed with their reason, and nobody else is harmed."""

import json
import re
import time

import pytest

from harness import eventually
from harness.paho_client import V5, connected


@pytest.fixture(scope="module")
def client(server):
    """MQTT takes any payload; HTTP refuses what calls itself JSON and is not."""
    with connected(server, V5) as client:
        yield client


def rejects(server, device, count=1):
    return server.wait_rows(
        f"SELECT reason, detail FROM rejects WHERE device_id = '{device}' ORDER BY log_offset", count
    )


def metrics(server, device):
    rows = server.sql(
        f"SELECT metric_name, metric_value FROM raw_metrics WHERE device_id = '{device}' ORDER BY metric_name"
    )
    return dict(rows)


CASES = {
    "no JSON": (b'{"n": ', "syntax"),
    "two documents": (b'{"n": 1} {"n": 2}', "syntax"),
    "invalid UTF-8": (b'{"n": "\xff"}', "syntax"),
    "control character": (b'{"n": "\x01"}', "syntax"),
    "lone surrogate": (rb'{"n": "\ud800"}', "syntax"),
    "NaN": (b'{"n": NaN}', "syntax"),
    "Infinity": (b'{"n": Infinity}', "syntax"),
    "binary": (bytes(range(256)), "syntax"),
    "depth bomb": (b"[" * 100_000 + b"]" * 100_000, "too_deep"),
    "depth bomb of objects": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "too_deep"),
    "a little too deep": (b'{"a":' * 40 + b"1" + b"}" * 40, "too_deep"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_decoded(server, client, device, case):
    payload, reason = CASES[case]
    client.publish(f"devices/{device}/state", payload)
    ((found, detail),) = rejects(server, device)
    assert found == reason and detail, detail
    assert metrics(server, device) == {}
    query = f"SELECT encode(payload, 'hex') FROM {{}} WHERE device_id = '{device}'"
    assert server.sql(query.format("raw_events")) == server.sql(query.format("rejects")) == [(payload.hex(),)]


def test_rejects_are_in_rest(server, client, device):
    client.publish(f"devices/{device}/state", b"no json")
    rejects(server, device)
    answer = server.get(f"/api/v1/rejects?device={device}")
    assert answer.status_code == 200, answer.text
    (reject,) = answer.json()["rejects"]
    assert (reject["device_id"], reject["reason"], reject["type"]) == (device, "syntax", "state")


def test_a_number_too_large_is_a_reject_of_that_value(server, device):
    server.post_event(device, b'{"big": 1e400, "n": 1}')
    eventually(lambda: rejects(server, device))
    ((reason, _),) = rejects(server, device)
    assert reason in ("value", "syntax")
    if reason == "value":
        assert metrics(server, device) == {"n": 1.0}


@pytest.mark.parametrize(
    "stamp",
    [
        int(time.time()) + 400 * 86_400,
        -62_135_596_800,
        10**25,
        "yesterday",
        "2026-13-45T99:99:99Z",
        {"value": "never"},
        True,
        "9999-12-31T23:59:59Z",
        "0001-01-01T00:00:00Z",
    ],
    ids=str,
)
def test_absurd_times(server, device, stamp):
    """The time is a reject; the values are kept at the time of arrival."""
    before = time.time()
    server.post_event(device, {"ts": stamp, "n": 1})
    ((reason, _),) = rejects(server, device)
    assert reason in ("timestamp", "syntax")
    if reason == "timestamp":
        query = f"SELECT metric_value, date_part('epoch', timestamp) FROM raw_metrics WHERE device_id = '{device}' AND metric_name = 'n'"
        ((value, when),) = server.wait_rows(query, 1)
        assert value == 1.0 and before - 1 <= when <= time.time() + 1


@pytest.mark.parametrize(
    "text",
    ["{}", "{:.3f}", "2026"],
    ids=["seconds", "fraction", "year"],
)
def test_times_are_read(server, device, text):
    now = int(time.time()) - 60
    stamp = {"{}": now, "{:.3f}": now + 0.25, "2026": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))}[text]
    server.post_event(device, {"ts": stamp, "n": 1})
    expected = now + 0.25 if text == "{:.3f}" else now
    rows = server.wait_rows(f"SELECT date_part('epoch', timestamp) FROM raw_metrics WHERE device_id = '{device}'", 1)
    assert rows == [(expected,)]


def test_positions(server, device):
    point = {"type": "Point", "coordinates": [-61.07, 14.6]}
    server.post_event(
        device, {"location": point, "lat": 1.5, "lng": 2.5, "temperature": {"type": "Number", "value": 21}}
    )
    server.wait_rows(f"SELECT 1 FROM raw_metrics WHERE device_id = '{device}'", 6)
    assert metrics(server, device) == {
        "latitude": 1.5,
        "location.latitude": 14.6,
        "location.longitude": -61.07,
        "longitude": 2.5,
        "temperature.type": None,
        "temperature.value": 21.0,
    }


def test_too_many_values(server, device):
    server.post_event(device, {f"m{n:05}": n for n in range(10_500)})
    reasons = {
        reason
        for reason, _ in eventually(
            lambda: server.sql(f"SELECT reason, detail FROM rejects WHERE device_id = '{device}'")
        )
    }
    assert reasons <= {"too_many_values", "too_many_metrics"}, reasons
    assert 0 < len(metrics(server, device)) <= 10_000


def test_a_long_metric_name(server, device):
    server.post_event(device, {"x" * 300: 1, "n": 2})
    assert rejects(server, device)[0][0] == "metric_name"
    assert metrics(server, device) == {"n": 2.0}


def test_a_million_metric_names_harm_nobody(new_server):
    """A device that invents names is limited, counted and reported; its neighbours and itself go on."""
    server = new_server().start()
    server.post_event("neighbour", {"n": 1})
    for first in range(0, 1_000_000, 50_000):
        documents = [{f"m{n}": 1 for n in range(start, start + 500)} for start in range(first, first + 50_000, 500)]
        server.post_event(
            "inventor", "\n".join(map(json.dumps, documents)), headers={"Content-Type": "application/x-ndjson"}
        )
    server.post_event("inventor", {"m0": 7})
    server.post_event("neighbour", {"n": 2, "new": 3})
    eventually(lambda: server.snapshot("neighbour") == {"n": 2, "new": 3}, 60)
    eventually(lambda: server.snapshot("inventor").get("m0") == 7, 60)
    distinct = server.value("SELECT count(DISTINCT metric_name) FROM raw_metrics WHERE device_id = 'inventor'")
    assert 100 <= distinct <= 100_000
    assert len(server.snapshot("inventor")) == distinct
    reported = server.sql("SELECT DISTINCT reason FROM rejects WHERE device_id = 'inventor'")
    assert reported == [("too_many_metrics",)]
    (counted,) = re.findall(r"(?m)^catchment_distribute_rejects_total (\d+)", server.get("/metrics").text)
    assert int(counted) > 0
    assert server.resident_bytes() < 2 << 30


# Decoders.


def set_decoder(server, event_type, rule):
    return server.session.put(server.url(f"/api/v1/decoders/{event_type}"), json=rule, headers=server.admin)


def test_a_decoder_changes_without_restart(server, device):
    event_type = f"type-{device}"
    document = {"a": {"x": 1, "y": 2}, "list": [5, 6], "when": int(time.time()) - 50}
    server.post_event(device, document, event_type=event_type)
    server.wait_rows(f"SELECT 1 FROM raw_metrics WHERE device_id = '{device}'", 5)
    assert set(metrics(server, device)) == {"a.x", "a.y", "list.0", "list.1", "when"}
    rule = {"timestamp": ["when"], "arrays": "length", "exclude": ["a.y"], "rename": {"a.x": "speed"}}
    answer = set_decoder(server, event_type, rule)
    assert answer.status_code in (200, 201, 204), answer.text

    def applied():
        server.post_event(f"{device}-b", document, event_type=event_type)
        found = server.sql(
            f"SELECT metric_name FROM raw_metrics WHERE device_id = '{device}-b' ORDER BY log_offset DESC, metric_name LIMIT 2"
        )
        return found == [("list.length",), ("speed",)]

    eventually(applied)
    stamp = server.value(
        f"SELECT date_part('epoch', max(timestamp)) FROM raw_metrics WHERE device_id = '{device}-b' AND metric_name = 'speed'"
    )
    assert stamp == document["when"]


def test_a_decoder_survives_a_restart(new_server):
    server = new_server().start()
    assert set_decoder(server, "t", {"include": ["keep"]}).status_code in (200, 201, 204)
    server.restart()
    server.post_event("d", {"keep": 1, "drop": 2}, event_type="t")
    server.wait_rows("SELECT 1 FROM raw_metrics", 1)
    assert metrics(server, "d") == {"keep": 1.0}


def test_raw_only(server, device):
    event_type = f"raw-{device}"
    assert set_decoder(server, event_type, {"format": "none"}).status_code in (200, 201, 204)
    server.post_event(device, b"\x00\x01binary", event_type=event_type)
    server.wait_rows(f"SELECT 1 FROM raw_events WHERE device_id = '{device}'", 1)
    assert server.sql(f"SELECT 1 FROM rejects WHERE device_id = '{device}'") == []


@pytest.mark.parametrize(
    "rule", [{"array": "length"}, {"depth_max": 100_000}, {"timestamp": [""]}, {"arrays": "both"}, [1]]
)
def test_a_wrong_rule_is_refused(server, rule):
    answer = set_decoder(server, "wrong", rule)
    assert answer.status_code in (400, 422), answer.text
    assert answer.json()["message"]
