"""Routes: which topics become events, and with which tags; changed while the server runs."""

import json
import subprocess

import pytest

from harness import eventually, run
from harness.paho_client import connected

TRAFFIC = {"topic": "city/{area}/traffic/{device_id}", "type": "traffic"}


def publish(server, topic, payload, qos=1):
    """With the client from Debian; waits for the acknowledgement."""
    command = ["mosquitto_pub", "-h", "127.0.0.1", "-p", str(server.mqtt_port), "-V", "mqttv5", "-q", str(qos)]
    return subprocess.run(
        [*command, "-t", topic, "-m", payload], capture_output=True, text=True, timeout=20, check=False
    )


def put(server, rule):
    return server.session.put(server.url("/api/v1/routes"), json=rule, timeout=20)


def leads_to(server, topic):
    return server.get("/api/v1/routes/test", params={"topic": topic}).json()


def test_tags_reach_the_readings(new_server):
    server = new_server().start()
    assert put(server, TRAFFIC).status_code == 200
    assert publish(server, "city/nord/traffic/t1", '{"cars": 3}').returncode == 0
    assert publish(server, "devices/d1/state", '{"cars": 4}').returncode == 0
    server.wait_rows("SELECT 1 FROM raw_metrics", 2)
    rows = server.sql("SELECT device_id, metric_value, metadata FROM raw_metrics ORDER BY device_id")
    assert rows == [("d1", 4, None), ("t1", 3, '{"area":"nord"}')]
    assert server.sql("SELECT type, topic FROM raw_events WHERE device_id = 't1'") == [
        ("traffic", "city/nord/traffic/t1")
    ]
    # Routes and tags survive, in the registry, in the log and in files.
    server.restart()
    assert leads_to(server, "city/sud/traffic/t2")["tags"] == {"area": "sud"}
    assert server.sql("SELECT metadata FROM raw_metrics WHERE device_id = 't1'") == [('{"area":"nord"}',)]


def test_a_route_is_in_force_at_once_also_for_those_who_are_connected(new_server):
    server = new_server().start()
    with connected(server) as client:
        client.publish("plant/p1", b'{"n": 1}')
        assert put(server, {"topic": "plant/{device_id}", "type": "plant"}).status_code == 200
        client.publish("plant/p1", b'{"n": 2}')
        path = "/api/v1/routes?topic=plant/%7Bdevice_id%7D"
        assert server.session.delete(server.url(path), timeout=20).status_code == 204
        client.publish("plant/p1", b'{"n": 3}')
    server.wait_rows("SELECT 1 FROM raw_metrics", 1)
    assert server.sql("SELECT metric_value FROM raw_metrics") == [(2,)]
    metrics = server.get("/metrics").text
    assert 'catchment_gateway_unrouted_messages_total{outcome="brokered"} 2' in metrics


def test_bad_routes_are_told_where_and_what_to_do(new_server):
    server = new_server().start()
    answer = put(server, {"topic": "site/{device_id", "type": "t"})
    problem = answer.json()
    assert answer.status_code == 400 and answer.headers["content-type"] == "application/problem+json"
    assert problem["position"] == {"line": 1, "column": 16}
    assert problem["status"] == 400 and problem["hint"] == "close it: {name}"
    assert put(server, TRAFFIC).status_code == 200
    same = put(server, {"topic": "city/{x}/traffic/{device_id}", "type": "other"})
    assert same.status_code == 409 and TRAFFIC["topic"] in same.json()["message"]
    configured = server.session.delete(server.url("/api/v1/routes?topic=devices/%7Bdevice_id%7D/%7Btype%7D"), timeout=20)
    assert configured.status_code == 409
    assert server.session.delete(server.url("/api/v1/routes?topic=nowhere"), timeout=20).status_code == 404


def test_the_command(new_server):
    server = new_server().start()

    def route(*arguments):
        return run("route", *arguments, "--url", server.url("").rstrip("/"), "--data", str(server.data))

    added = route("add", "tele/{device_id}/{type}", "--tag", "source=tasmota")
    assert added.returncode == 0, added.stderr
    listed = route("list").stdout
    assert "tele/{device_id}/{type}" in listed and "source=tasmota" in listed and "configuration" in listed
    assert "tasmota" in route("test", "tele/plug/state").stdout
    assert "brokered" in route("test", "other/topic").stdout
    assert route("remove", "tele/{device_id}/{type}").returncode == 0
    assert "brokered" in route("test", "tele/plug/state").stdout
    bad = route("add", "a/{b")
    assert bad.returncode == 1 and "not closed" in bad.stderr


@pytest.mark.parametrize("action", ["keep", "refuse"])
def test_topics_that_no_route_takes(new_server, action):
    server = new_server(config=f'[gateway.unrouted]\naction = "{action}"\ndevice_id = "lost"\n').start()
    published = publish(server, "some/where", "plain text")
    posted = server.post("/api/v1/topics/some/where", data="plain text", headers={"Content-Type": "text/plain"})
    metrics = server.get("/metrics").text
    if action == "refuse":
        # mosquitto_pub tells of the refusal, and succeeds all the same.
        assert "Topic Name invalid" in published.stdout + published.stderr
        assert (posted.status_code, posted.json()["error"]) == (404, "no_route")
        assert 'catchment_gateway_unrouted_messages_total{outcome="refused"} 2' in metrics
        assert server.sql("SELECT 1 FROM raw_events") == []
    else:
        assert published.returncode == 0 and posted.status_code == 200
        server.wait_rows("SELECT 1 FROM raw_events", 2)
        assert set(server.sql("SELECT device_id, type, topic FROM raw_events")) == {("lost", "unrouted", "some/where")}


def test_a_configuration_with_a_bad_route_is_refused(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text('[[gateway.routes]]\ntopic = "a/{device_id}"\n')
    checked = run("check", "--config", str(path))
    assert checked.returncode == 1
    assert "does not tell the type" in checked.stdout + checked.stderr


def test_readers_may_look_and_not_change(new_server):
    server = new_server().start()
    made = server.post("/api/v1/tokens", json={"name": "r", "role": "reader"}, headers=server.admin).json()
    reader = {"Authorization": f"Bearer {made['token']}"}
    assert server.get("/api/v1/routes", headers=reader).status_code == 200
    answer = server.session.put(server.url("/api/v1/routes"), data=json.dumps(TRAFFIC), headers=reader, timeout=20)
    assert answer.status_code == 403
    eventually(lambda: len(server.get("/api/v1/routes").json()) == 1, what="only the configuration's route")
