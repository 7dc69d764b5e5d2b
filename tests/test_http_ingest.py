"""HTTP ingest: encodings, reports of what was refused, topics, and requests that are sent again."""

import json
import subprocess
import threading
import zlib

import pytest
import requests

from harness import eventually
from harness.paho_client import connected

JSON = {"Content-Type": "application/json"}
NDJSON = {"Content-Type": "application/x-ndjson"}


def path(device, event_type="state"):
    return f"/api/v1/ingest/{device}/{event_type}"


def count(server, device):
    return server.value(f"SELECT count(*) FROM raw_events WHERE device_id = '{device}'")


def test_deflate_as_the_standard_and_as_some_clients_have_it(server, device):
    packed = zlib.compress(b"[1,2]")
    bare = packed[2:-4]
    for body in (packed, bare):
        answer = server.post(path(device), data=body, headers={**JSON, "Content-Encoding": "deflate"})
        assert (answer.status_code, answer.json()) == (200, {"accepted": 2})
    eventually(lambda: count(server, device) == 4, what="4 events")


def test_what_is_refused_is_listed_and_the_rest_is_kept(server, device):
    answer = server.post(path(device), data='{"a":1}\nbad\n{"a":3}\n', headers=NDJSON)
    report = answer.json()
    assert (answer.status_code, report["accepted"], report["refused"]) == (207, 2, 1)
    assert report["errors"][0]["line"] == 2 and report["errors"][0]["reason"]
    large = json.dumps([1, "x" * 2_000_000, 3])
    answer = server.post(path(device), data=large, headers=JSON)
    assert (answer.status_code, answer.json()["errors"][0]["index"]) == (207, 1)
    nothing = server.post(path(device), data="bad\nworse\n", headers=NDJSON)
    assert nothing.status_code == 400 and nothing.headers["content-type"] == "application/problem+json"
    assert [error["line"] for error in nothing.json()["errors"]] == [1, 2]
    eventually(lambda: count(server, device) == 4, what="4 events")


def test_chunks_from_curl_over_http_2(server, device):
    lines = "\n".join(json.dumps({"n": n}) for n in range(5000)).encode()
    command = ["curl", "-sS", "--http2-prior-knowledge", "-H", "Content-Type: application/x-ndjson", "-T", "-"]
    command += ["-X", "POST", "-w", "\n%{http_version} %{http_code}", server.url(path(device))]
    done = subprocess.run(command, input=lines, capture_output=True, timeout=30, check=True)
    body, _, told = done.stdout.rpartition(b"\n")
    assert (told, json.loads(body)) == (b"2 200", {"accepted": 5000})


def test_one_connection_serves_many_requests(server, device):
    with requests.Session() as session:
        sockets = set()
        for _ in range(5):
            answer = session.post(server.url(path(device)), data="1", headers=JSON, timeout=20, stream=True)
            sockets.add(answer.raw.connection.sock.getsockname() if answer.raw.connection else None)
            assert answer.json() == {"accepted": 1}
        assert len(sockets) == 1


def test_a_topic_goes_by_its_route_and_to_subscribers(server, device):
    with connected(server) as subscriber:
        subscriber.subscribe(f"devices/{device}/#")
        answer = server.post(f"/api/v1/topics/devices/{device}/state", json={"n": 1})
        assert (answer.status_code, answer.json()) == (200, {"accepted": 1})
        assert server.post(path(device, "other"), json={"n": 2}).status_code == 200
        messages = [subscriber.next() for _ in range(2)]
    seen = [(message.topic, message.payload, message.properties.ContentType) for message in messages]
    assert seen == [
        (f"devices/{device}/state", b'{"n": 1}', "application/json"),
        (f"devices/{device}/other", b'{"n": 2}', "application/json"),
    ]
    nobody = server.post("/api/v1/topics/nobody/knows", json={"n": 1})
    assert (nobody.status_code, nobody.json()) == (202, {"accepted": 0, "brokered": 1})


def test_a_key_counts_once(server, device):
    def post(body, key="7f9c"):
        return server.post(path(device), data=body, headers={**NDJSON, "Idempotency-Key": key})

    assert post("1\n2").json() == {"accepted": 2}
    again = post("1\n2")
    assert again.json() == {"accepted": 2, "replayed": 2}
    assert again.headers["idempotency-replayed"] == "true"
    other = post("1\n3")
    assert (other.status_code, other.json()["error"]) == (422, "idempotency_key_reused")
    assert post("1\n2", "another").json() == {"accepted": 2}
    eventually(lambda: count(server, device) == 4, what="4 events")


@pytest.mark.parametrize("round", range(2))
def test_a_key_counts_once_over_kill(new_server, round):
    """Clients post with keys, never knowing whether an answer that did not come meant anything, and send again."""
    server = new_server().start()
    posts, clients = 120, 4
    killed = threading.Event()

    def client(number):
        for n in range(posts):
            body = "\n".join(json.dumps({"post": n, "part": part}) for part in range(20))
            headers = {**NDJSON, "Idempotency-Key": f"post-{n}"}
            while True:
                try:
                    url = server.url(path(f"c{number}"))
                    answer = requests.post(url, data=body, headers=headers, timeout=5)
                    if answer.status_code == 200:
                        break
                    assert answer.status_code in (409, 503), answer.text
                except requests.RequestException:
                    killed.wait(0.05)
            # Some are sent again although they were answered.
            if n % 10 == 0:
                try:
                    requests.post(server.url(path(f"c{number}")), data=body, headers=headers, timeout=5)
                except requests.RequestException:
                    pass

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        eventually(lambda: server.value("SELECT count(*) FROM raw_events") > 50, what="some events")
        server.restart()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    wanted = posts * clients * 20
    eventually(lambda: server.value("SELECT count(*) FROM raw_events") >= wanted, what="all events")
    assert server.value("SELECT count(*) FROM raw_events") == wanted
    doubled = server.sql("SELECT device_id, CAST(payload AS VARCHAR) FROM raw_events GROUP BY 1, 2 HAVING count(*) > 1")
    assert doubled == []
