"""HTTP ingest: encodings, reports of what was refused, topics, and requests that are sent again."""

import gzip
import itertools
import json
import socket
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


# Bodies that are taken in as they come.


class Post:
    """A request whose body is sent by hand, in chunks."""

    def __init__(self, server, device, **headers):
        self.socket = socket.create_connection(("127.0.0.1", server.http_port), timeout=30)
        head = {"Host": "127.0.0.1", "Content-Type": "application/x-ndjson", "Transfer-Encoding": "chunked", **headers}
        lines = [f"POST {path(device)} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
        self.socket.sendall("\r\n".join(lines).encode())

    def send(self, text):
        data = text.encode()
        self.socket.sendall(b"%x\r\n%s\r\n" % (len(data), data))

    def end(self):
        """Ends the body; gives status and document of the answer."""
        self.socket.sendall(b"0\r\n\r\n")
        return self.answer()

    def answer(self):
        with self.socket.makefile("rb") as stream:
            status = int(stream.readline().split()[1])
            length = 0
            for line in iter(stream.readline, b"\r\n"):
                name, _, value = line.decode().partition(":")
                length = int(value) if name.lower() == "content-length" else length
            return status, json.loads(stream.read(length))

    def break_off(self):
        self.socket.close()


def numbers(first, last):
    return "".join(f'{{"n": {n}}}\n' for n in range(first, last + 1))


def stored(server, device):
    return sorted(
        json.loads(payload)["n"]
        for (payload,) in server.sql(f"SELECT CAST(payload AS VARCHAR) FROM raw_events WHERE device_id = '{device}'")
    )


def test_lines_are_kept_while_the_body_still_comes(server, device):
    post = Post(server, device)
    for n in range(3):
        post.send(numbers(3 * n + 1, 3 * n + 3))
        eventually(lambda n=n: count(server, device) == 3 * n + 3, what="the lines so far")
    post.send('bad\n{"n": 10}')
    status, report = post.end()
    assert (status, report["accepted"], report["refused"], report["errors"][0]["line"]) == (207, 10, 1, 10)
    eventually(lambda: stored(server, device) == list(range(1, 11)), what="all lines once")


@pytest.mark.parametrize("coding", [None, "gzip"])
def test_a_large_body_needs_little_memory(server, coding):
    """A body of 128 MiB, whose messages are only brokered, so that memory for tables does not count."""
    line = json.dumps({"text": "x" * 1000}).encode() + b"\n"
    piece = line * 256
    pieces = itertools.repeat(piece, (128 << 20) // len(piece))
    headers = dict(NDJSON)
    if coding:
        pieces = packed(pieces)
        headers["Content-Encoding"] = coding
    before, most, done = server.resident_bytes(), 0, threading.Event()

    def watch():
        nonlocal most
        while not done.wait(0.05):
            most = max(most, server.resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    url = server.url("/api/v1/topics/nobody/knows")
    answer = requests.post(url, data=(piece for piece in pieces if piece), headers=headers, timeout=120)
    done.set()
    watcher.join()
    assert (answer.status_code, answer.json()["brokered"]) == (202, (128 << 20) // len(piece) * 256), answer.text
    assert most - before < 48 << 20, f"{(most - before) >> 20} MiB"


def packed(pieces):
    packer = zlib.compressobj(1, wbits=31)
    for piece in pieces:
        yield packer.compress(piece)
    yield packer.flush()


def test_every_refused_line_is_told_in_a_long_body(server, device):
    lines = [f'{{"n": {n}}}' if n % 5000 else "bad" for n in range(1, 20_001)]
    answer = server.post(path(device), data=gzip.compress("\n".join(lines).encode()), headers={**NDJSON, "Content-Encoding": "gzip"})
    report = answer.json()
    assert (answer.status_code, report["accepted"], report["refused"]) == (207, 19_996, 4)
    assert [error["line"] for error in report["errors"]] == [5000, 10_000, 15_000, 20_000]
    eventually(lambda: count(server, device) == 19_996, what="all other lines")


def test_a_body_that_breaks_off_leaves_its_whole_lines(server, device):
    post = Post(server, device)
    post.send(numbers(1, 5) + '{"n": 6')
    post.break_off()
    eventually(lambda: stored(server, device) == [1, 2, 3, 4, 5], what="the whole lines")


@pytest.mark.parametrize("restart", [False, True])
def test_a_body_that_broke_off_goes_on_with_its_key(new_server, device, restart):
    server = new_server().start()
    key = {"Idempotency-Key": "k"}
    post = Post(server, device, **key)
    post.send(numbers(1, 5) + '{"n": 6')
    # The last whole line is held back until it is known whether another follows.
    eventually(lambda: stored(server, device) == [1, 2, 3, 4], what="the lines so far")
    if restart:
        server.restart()
        kept = 4
    else:
        post.break_off()
        eventually(lambda: stored(server, device) == [1, 2, 3, 4, 5], what="the whole lines")
        kept = 5
    # Another body is none that goes on.
    for other in (numbers(2, 20), numbers(1, 3)):
        answer = server.post(path(device), data=other, headers={**NDJSON, **key})
        assert (answer.status_code, answer.json()["error"]) == (422, "idempotency_key_reused"), other
    answer = server.post(path(device), data=numbers(1, 9), headers={**NDJSON, **key})
    assert (answer.status_code, answer.json()) == (200, {"accepted": 9, "replayed": kept})
    for _ in range(2):
        answer = server.post(path(device), data=numbers(1, 9), headers={**NDJSON, **key})
        assert (answer.status_code, answer.json()) == (200, {"accepted": 9, "replayed": 9})
        server.restart()
    # Now that its end is known, nothing goes on behind it, nor is a shorter one the same.
    for other in (numbers(1, 10), numbers(1, 8), "[1]"):
        headers = NDJSON if other != "[1]" else JSON
        answer = server.post(path(device), data=other, headers={**headers, **key})
        assert (answer.status_code, answer.json()["error"]) == (422, "idempotency_key_reused"), other
    eventually(lambda: stored(server, device) == list(range(1, 10)), what="every line once")


def test_a_long_body_with_a_key_counts_once_over_kills(new_server, device):
    """A body that is larger than what is appended at once, sent again until it is answered, while the server dies."""
    server = new_server().start()
    lines = [json.dumps({"n": n, "text": "x" * 500}) for n in range(1, 6001)]
    answers = []

    def client():
        while not answers:
            try:
                body = ("\n".join(lines[at : at + 100]).encode() + b"\n" for at in range(0, len(lines), 100))
                url = server.url(path(device))
                answer = requests.post(url, data=body, headers={**NDJSON, "Idempotency-Key": "k"}, timeout=20)
                assert answer.status_code in (200, 409, 503), answer.text
                if answer.status_code == 200:
                    answers.append(answer.json())
            except requests.RequestException:
                threading.Event().wait(0.05)

    thread = threading.Thread(target=client, daemon=True)
    thread.start()
    for least in (100, 2500):
        try:
            eventually(lambda least=least: answers or count(server, device) > least, what="some lines")
        finally:
            server.restart()
    thread.join(timeout=60)
    assert answers[0]["accepted"] == 6000
    answer = server.post(path(device), data="\n".join(lines), headers={**NDJSON, "Idempotency-Key": "k"})
    assert answer.json() == {"accepted": 6000, "replayed": 6000}
    eventually(lambda: count(server, device) == 6000, what="every line once")
    assert stored(server, device) == list(range(1, 6001))


def test_what_stalls_or_is_too_large_is_told_with_what_was_kept(new_server, device):
    config = "[gateway.http]\nstall_s_max = 1\nlines_bytes_max = 1000\n"
    server = new_server(config=config).start()
    post = Post(server, device)
    post.send(numbers(1, 3) + '{"n": 4')
    status, problem = post.answer()
    assert (status, problem["error"], problem["accepted"], problem["line"]) == (408, "stalled", 3, 3)
    answer = server.post(path(f"{device}-large"), data=(numbers(at, at + 9).encode() for at in range(1, 1000, 10)), headers=NDJSON)
    problem = answer.json()
    assert (answer.status_code, problem["error"]) == (413, "too_large")
    assert problem["accepted"] == problem["line"] > 10
    eventually(lambda: count(server, f"{device}-large") == problem["accepted"], what="the lines before")
    answer = server.post(path(device), data="[1, 2", headers=JSON)
    assert answer.status_code == 400
