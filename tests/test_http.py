"""HTTP ingest, and the endpoints for operators."""

import gzip
import http.client
import json
import re
import subprocess
import time

import pytest

from harness import eventually

JSON = {"Content-Type": "application/json"}
NDJSON = {"Content-Type": "application/x-ndjson"}


def curl(server, path, *arguments, stdin=None):
    """The status and body of a request with the tool from Debian."""
    command = ["curl", "--silent", "--show-error", "--max-time", "20", "--write-out", "\n%{http_code}", *arguments]
    done = subprocess.run([*command, server.url(path)], input=stdin, capture_output=True, check=True)
    body, _, status = done.stdout.rpartition(b"\n")
    return int(status), body


def readings(server, device, count):
    """Metric and value of all readings of a device in the order of the log."""
    return server.wait_rows(
        f"SELECT metric_name, metric_value FROM raw_metrics WHERE device_id = '{device}' ORDER BY log_offset, metric_name",
        count,
    )


def ingest_path(device, event_type="state"):
    return f"/api/v1/devices/{device}/events/{event_type}"


# Ingest.


def test_curl_posts_one_document(server, device):
    status, _ = curl(server, ingest_path(device), "--json", '{"rpm": 1480, "oil": {"temp": 71.5}}')
    assert status == 200
    assert readings(server, device, 2) == [("oil.temp", 71.5), ("rpm", 1480.0)]
    status, body = curl(server, f"/api/v1/devices/{device}/snapshot")
    assert status == 200
    snapshot = json.loads(body)
    assert snapshot["device_id"] == device
    assert {name: metric["value"] for name, metric in snapshot["metrics"].items()} == {"rpm": 1480, "oil.temp": 71.5}


def test_array_is_one_event_for_each_item(server, device):
    server.post_event(device, [{"n": 1}, {"n": 2}, {"n": 3}])
    assert readings(server, device, 3) == [("n", 1.0), ("n", 2.0), ("n", 3.0)]
    assert server.value(f"SELECT count(*) FROM raw_events WHERE device_id = '{device}'") == 3


def test_ndjson_is_one_event_for_each_line(server, device):
    body = '{"n": 1}\n\n{"n": 2}\r\n{"n": 3}'
    server.post_event(device, body, headers=NDJSON)
    assert readings(server, device, 3) == [("n", 1.0), ("n", 2.0), ("n", 3.0)]


def test_a_bad_line_is_told_and_leaves_the_others(server, device):
    body = '{"n": 1}\n{"n": \n{"n": 3}'
    answer = server.post(ingest_path(device), data=body, headers=NDJSON)
    assert answer.status_code == 207
    answer = answer.json()
    assert (answer["accepted"], answer["refused"]) == (2, 1)
    assert [error["line"] for error in answer["errors"]] == [2]
    assert readings(server, device, 2) == [("n", 1.0), ("n", 3.0)]
    assert server.value(f"SELECT count(*) FROM raw_events WHERE device_id = '{device}'") == 2


def test_what_is_not_json_is_refused_as_a_whole(server, device):
    for body in ('{"n": ', '[{"n": 1}, {"n": ]', '{"n": 1} x', "NaN"):
        message = refused(server.post(ingest_path(device), data=body, headers=JSON), 400)
        assert "JSON" in message
    refused(server.post(ingest_path(device), data="no\nlines", headers=NDJSON), 400)
    assert server.value(f"SELECT count(*) FROM raw_events WHERE device_id = '{device}'") == 0


def test_gzip(server, device):
    body = gzip.compress(json.dumps({"n": 7, "long": "x" * 10_000}).encode())
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    server.post_event(device, body, headers=headers)
    readings(server, device, 2)
    assert server.snapshot(device) == {"n": 7, "long": "x" * 10_000}


def test_curl_posts_gzip(server, device, tmp_path):
    (tmp_path / "body.gz").write_bytes(gzip.compress(b'{"n": 1}\n{"n": 2}\n'))
    headers = ["-H", "Content-Encoding: gzip", "-H", "Content-Type: application/x-ndjson"]
    status, body = curl(server, ingest_path(device), *headers, "--data-binary", f"@{tmp_path}/body.gz")
    assert status == 200, body
    assert readings(server, device, 2) == [("n", 1.0), ("n", 2.0)]


def test_names_with_unusual_letters(server):
    device = "Pompe n°3 (été)"
    answer = server.post("/api/v1/devices/Pompe%20n%C2%B03%20(%C3%A9t%C3%A9)/events/%C3%A9tat", json={"n": 1})
    assert answer.status_code == 200, answer.text
    assert server.wait_rows(f"SELECT type FROM raw_events WHERE device_id = '{device}'", 1) == [("état",)]


def test_events_keep_what_was_sent(server, device):
    payload = b'{ "n" : 1.0e0 }  '
    server.post_event(device, payload, headers=JSON)
    query = f"SELECT content_type, encode(payload, 'hex'), log_partition, log_offset FROM raw_events WHERE device_id = '{device}'"
    ((content_type, stored, partition, offset),) = server.wait_rows(query, 1)
    assert content_type == "application/json"
    assert bytes.fromhex(stored).strip() == payload.strip()
    assert partition >= 0 and offset >= 0


# What is refused, and that it is told.


def refused(answer, status):
    assert answer.status_code == status, f"{answer.status_code}: {answer.text}"
    problem = answer.json()
    assert problem["error"] and problem["message"], problem
    return problem["message"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/devices/a%2Fb/events/state", 400),
        ("/api/v1/devices/a%2Bb/events/state", 400),
        ("/api/v1/devices/a%23b/events/state", 400),
        ("/api/v1/devices/a%00b/events/state", 400),
        (f"/api/v1/devices/{'d' * 257}/events/state", 400),
        (f"/api/v1/devices/a/events/{'t' * 129}", 400),
        ("/api/v1/devices/a%FF/events/state", 400),
    ],
    ids=["slash", "plus", "hash", "NUL", "long device", "long type", "UTF-8"],
)
def test_bad_names_are_refused(server, path, status):
    refused(server.post(path, json={"n": 1}), status)


def test_oversized_body_is_refused(server, device):
    body = b'{"n": "' + b"x" * (64 << 20) + b'"}'
    try:
        refused(server.post(ingest_path(device), data=body), 413)
    except OSError as error:
        # Refused before the body was read: the answer can get lost when the server closes.
        assert "reset" in str(error) or "pipe" in str(error).lower(), error
    server.post_event(device, {"n": 1})
    assert readings(server, device, 1) == [("n", 1.0)]


def test_oversized_event_is_refused(server, device):
    body = b'{"n": "' + b"x" * (3 << 20) + b'"}'
    refused(server.post(ingest_path(device), data=body), 413)
    assert server.value(f"SELECT count(*) FROM raw_events WHERE device_id = '{device}'") == 0


def test_gzip_bomb_is_refused(server, device):
    body = gzip.compress(b" " * (300 << 20), compresslevel=9)
    assert len(body) < 1 << 20
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    refused(server.post(ingest_path(device), data=body, headers=headers), 413)


def test_broken_gzip_is_refused(server, device):
    whole = gzip.compress(b'{"n": 1}')
    for body in (b"no gzip", whole[:-9], whole[:4]):
        refused(server.post(ingest_path(device), data=body, headers={"Content-Encoding": "gzip"}), 400)


def test_unknown_encoding_is_refused(server, device):
    refused(server.post(ingest_path(device), data=b"x", headers={"Content-Encoding": "br"}), 415)


def test_empty_body_is_refused(server, device):
    refused(server.post(ingest_path(device), data=b""), 400)
    refused(server.post(ingest_path(device), data=b"\n\n", headers=NDJSON), 400)


def test_unknown_paths_and_methods(server):
    assert server.get("/api/v1/nothing").status_code == 404
    assert server.session.put(server.url(ingest_path("a")), json={}).status_code == 405
    refused(server.get("/api/v1/devices/nobody-has-this-name/snapshot"), 404)


def test_a_refusal_before_the_body_does_not_break_the_next_request(server, device):
    """The connection goes on, or the answer says that it does not: a client that keeps it must be able to know."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)
    for path, body in (("/api/v1/devices/a%2Fb/events/state", b'{"n": 1}'), (ingest_path(device), b"no json")):
        connection.putrequest("POST", path)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        # Bodies come in a packet of their own, and later, from many clients.
        time.sleep(0.05)
        connection.send(body)
        answer = connection.getresponse()
        assert answer.status == 400 and json.loads(answer.read())["message"]
        if answer.getheader("Connection") == "close":
            connection.close()
        connection.request("POST", ingest_path(device), b'{"n": 1}', JSON)
        answer = connection.getresponse()
        assert answer.status == 200 and json.loads(answer.read())["accepted"] == 1
    connection.close()


# For operators.


def test_health(server):
    assert server.get("/healthz").status_code == 200
    assert server.get("/readyz").status_code == 200


def test_metrics_are_prometheus_text(server, device):
    def counters():
        answer = server.get("/metrics")
        assert answer.status_code == 200
        assert re.match(r"(text/plain|application/openmetrics-text)", answer.headers["Content-Type"])
        values = {}
        for line in answer.text.splitlines():
            if line and not line.startswith("#"):
                # `name{labels} value`, and nothing that does not look so.
                name, labels, value = re.fullmatch(r"([a-z_][a-z0-9_]*)(\{.*\})? (\S+).*", line).groups()
                values[name + (labels or "")] = float(value)
        return values

    before = counters()
    for part in ("gateway", "log", "distribute", "history", "sql"):
        assert any(name.startswith(f"catchment_{part}_") for name in before), part
    server.post_event(device, [{"n": n} for n in range(50)])

    def grown():
        after = counters()
        return any(
            name.startswith("catchment_gateway_")
            and name.split("{")[0].endswith("_total")
            and after[name] - before.get(name, 0) >= 50
            for name in after
        )

    eventually(grown)


def test_openapi_tells_every_path(server):
    answer = server.get("/api/v1/openapi.json")
    assert answer.status_code == 200
    document = answer.json()
    assert document["openapi"].startswith("3.")
    for path in [
        "/api/v1/devices",
        "/api/v1/devices/{device_id}",
        "/api/v1/devices/{device_id}/snapshot",
        "/api/v1/devices/{device_id}/events/{type}",
        "/api/v1/sql",
        "/api/v1/live",
    ]:
        assert path in document["paths"], sorted(document["paths"])
    schemas = set(document.get("components", {}).get("schemas", {}))
    references = set(re.findall(r"#/components/schemas/([^\"]+)", answer.text))
    assert references <= schemas, references - schemas


def test_status_page(server):
    answer = server.get("/")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "Catchment" in answer.text


def test_devices_are_listed(server, device):
    server.post_event(device, {"n": 1})
    readings(server, device, 1)
    answer = server.get(f"/api/v1/devices/{device}")
    assert answer.status_code == 200, answer.text
    known = answer.json()
    assert known["registered"] is False and known["events"] == 1, known
    ((registered, events),) = server.sql(f"SELECT registered, events FROM devices WHERE device_id = '{device}'")
    assert (registered, events) == (False, 1)
