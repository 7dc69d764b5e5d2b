"""The command line: what it prints, and what it says when something is wrong."""

import csv
import io
import json
import re
import signal
import subprocess
import threading

import pytest

from harness import BINARY, eventually, free_ports, run
from harness.server import ROOT, clean_environment


def client(server, *arguments, **options):
    """Runs a client command against a server, as its administrator."""
    return run(*arguments, "--url", server.url(""), "--data", server.data, **options)


def ok(done):
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
    return done.stdout


def test_query_prints_a_neat_table(server, device):
    server.post_event(device, [{"n": 1.5}, {"n": 2.5}])
    server.wait_rows(f"SELECT 1 FROM raw_metrics WHERE device_id = '{device}'", 2)
    query = f"SELECT metric_name, metric_value FROM raw_metrics WHERE device_id = '{device}' ORDER BY log_offset"
    lines = ok(client(server, "query", query)).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert cells == [["metric_name", "metric_value"], ["n", "1.5"], ["n", "2.5"]]
    assert lines[-1] == "2 rows"
    assert len({len(line) for line in lines[:-1]}) == 1, "the columns are aligned"


@pytest.mark.parametrize("folders", [["catchment-demo"], ["catchment-data", "catchment-demo"]])
def test_a_token_that_lies_there_and_is_of_another_platform_does_no_harm(server, tmp_path, folders):
    for name in folders:
        (tmp_path / name).mkdir()
        (tmp_path / name / "admin.token").write_text("ctm_of_another_platform\n")

    def here(*arguments):
        command = [BINARY, *arguments, "--url", server.url("")]
        environment = clean_environment()
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30, check=False)

    assert ok(here("query", "--format", "csv", "SELECT 1 AS one")).split() == ["one", "1"]
    device = f"added-by-{folders[-1]}-of-{len(folders)}"
    refused = here("device", "add", device)
    assert refused.returncode == 1 and "the administrator's token" in refused.stderr
    # One that fits is taken, wherever it lies.
    (tmp_path / folders[-1] / "admin.token").write_text(server.token)
    assert device in ok(here("device", "add", device))
    # One that was told is meant.
    told = here("query", "--token", "ctm_of_another_platform", "SELECT 1")
    assert told.returncode == 1 and "the token is not valid" in told.stderr


def test_query_formats(server):
    query = "SELECT value AS n, 'a,b' AS t FROM generate_series(1, 2) ORDER BY 1"
    rows = list(csv.reader(io.StringIO(ok(client(server, "query", "--format", "csv", query)))))
    assert rows == [["n", "t"], ["1", "a,b"], ["2", "a,b"]]
    lines = [json.loads(line) for line in ok(client(server, "query", "--format", "ndjson", query)).splitlines()]
    assert lines == [{"n": 1, "t": "a,b"}, {"n": 2, "t": "a,b"}]
    assert json.loads(ok(client(server, "query", "--format", "json", query)))["rows"] == lines


def test_query_from_standard_input(server):
    assert "42" in ok(client(server, "query", stdin="SELECT 6 * 7"))
    assert "42" in ok(client(server, "query", "-", stdin="SELECT 6 * 7"))


def test_query_marks_the_mistake(server):
    done = client(server, "query", "SELECT devic_id FROM raw_events")
    assert done.returncode == 1 and done.stdout == ""
    assert "devic_id" in done.stderr and "device_id" in done.stderr
    line, caret = [line for line in done.stderr.splitlines() if "SELECT" in line or "^" in line][:2]
    assert line.index("devic_id") == caret.index("^"), done.stderr


def test_no_server_is_told():
    (port,) = free_ports(1)
    done = run("query", "SELECT 1", "--url", f"http://127.0.0.1:{port}")
    assert done.returncode == 1
    assert str(port) in done.stderr and "catchment serve" in done.stderr


def test_tail_follows(server, device):
    command = [BINARY, "tail", f"{device}*", "--url", server.url(""), "--data", server.data]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean_environment()) as tail:
        lines = []
        reader = threading.Thread(target=lambda: [lines.append(line) for line in tail.stdout])
        reader.start()

        def followed():
            server.post_event(device, {"probe": 1})
            return any("probe" in line for line in lines)

        try:
            eventually(followed)
            server.post_event(f"not-{device}", {"foreign": 1})
            server.post_event(device, {"rpm": 1480}, event_type="engine")
            eventually(lambda: any("1480" in line for line in lines))
        finally:
            tail.send_signal(signal.SIGINT)
            try:
                ended = tail.wait(timeout=10)
            finally:
                tail.kill()
        assert ended in (0, 130, -signal.SIGINT)
        reader.join()
    (line,) = [line for line in lines if "1480" in line]
    assert device in line and "engine" in line
    assert not any("foreign" in line for line in lines)


def test_devices(server, device):
    ok(client(server, "device", "add", device, "--no-token", "--label", "site=lyon", "--label", "line=3"))
    assert device in ok(client(server, "device", "list"))
    shown = ok(client(server, "device", "show", device))
    assert "lyon" in shown and "site" in shown
    ((registered, labels),) = server.sql(f"SELECT registered, labels FROM devices WHERE device_id = '{device}'")
    assert registered is True and json.loads(labels) == {"site": "lyon", "line": "3"}
    server.post_event(device, {"rpm": 1480})
    server.wait_rows(f"SELECT 1 FROM raw_metrics WHERE device_id = '{device}'", 1)
    assert "1480" in ok(client(server, "device", "show", device))
    ok(client(server, "device", "remove", device))
    assert server.sql(f"SELECT registered FROM devices WHERE device_id = '{device}'") == [(False,)]
    assert server.value(f"SELECT count(*) FROM raw_events WHERE device_id = '{device}'") == 1, "what it sent stays"


def test_device_mistakes(server):
    for arguments in (
        ["show", "nobody-at-all"],
        ["remove", "nobody-at-all"],
        ["add", "a/b"],
        ["add", "x", "--label", "novalue"],
    ):
        done = client(server, "device", *arguments)
        assert done.returncode != 0 and done.stderr.strip(), arguments
        assert "panicked" not in done.stderr


def test_device_with_token(server, device):
    token = ok(client(server, "device", "add", device)).splitlines()[-1].strip()
    answer = server.post(
        f"/api/v1/devices/{device}/events/state", json={"n": 1}, headers={"Authorization": f"Bearer {token}"}
    )
    assert answer.status_code == 200
    answer = server.post(
        "/api/v1/devices/other/events/state", json={"n": 1}, headers={"Authorization": f"Bearer {token}"}
    )
    assert answer.status_code == 403


def test_decoders(server, tmp_path, device):
    event_type = f"cli-{device}"
    rule = tmp_path / "rule.json"
    rule.write_text('{"include": ["rpm"], "rename": {"rpm": "speed"}}')
    ok(client(server, "decoder", "set", event_type, rule))
    assert event_type in ok(client(server, "decoder", "list"))
    assert json.loads(ok(client(server, "decoder", "show", event_type)))["include"] == ["rpm"]
    tried = ok(client(server, "decoder", "test", event_type, "-", stdin='{"rpm": 900, "other": 1}'))
    assert "speed" in tried and "900" in tried and "other" not in tried
    ok(client(server, "decoder", "remove", event_type))
    assert event_type not in ok(client(server, "decoder", "list"))
    rule.write_text('{"includes": []}')
    done = client(server, "decoder", "set", event_type, rule)
    assert done.returncode != 0 and "includes" in done.stderr


def test_tokens(server):
    token = ok(client(server, "token", "create", "cli-test", "--role", "reader")).splitlines()[-1].strip()
    assert "4" in ok(run("query", "SELECT 2 + 2", "--url", server.url(""), "--token", token))
    listed = ok(client(server, "token", "list"))
    assert token not in listed
    (line,) = [line for line in listed.splitlines() if "cli-test" in line]
    token_id = re.search(r"[\w-]+", line).group()
    ok(client(server, "token", "revoke", token_id))
    assert "cli-test" not in ok(client(server, "token", "list"))
    done = run("query", "SELECT 1", "--url", server.url(""), "--token", token)
    assert done.returncode == 1 and "token" in done.stderr


# Configuration.


def free_listeners():
    """Flags of listeners that are free, and their ports."""
    ports = free_ports(3)
    names = ("--http", "--mqtt", "--pg")
    return [part for name, port in zip(names, ports, strict=True) for part in (name, f"127.0.0.1:{port}")], ports


def test_check_of_a_sound_configuration(tmp_path):
    flags, ports = free_listeners()
    out = ok(run("check", "--data", tmp_path / "data", *flags))
    for word in ("log", "history", "snapshot", "registry", "embedded", *map(str, ports)):
        assert word in out, out
    assert not (tmp_path / "data").exists(), "check changes nothing"


def test_the_shipped_configuration_is_sound(tmp_path):
    """As it is, and with every line that it shows taken in."""
    text = (ROOT / "catchment.toml").read_text()
    everything = tmp_path / "everything.toml"
    everything.write_text(re.sub(r"(?m)^#(?=[a-z_]+ = |\[\[)", "", text))
    assert everything.read_text().count("\n#") < text.count("\n#") / 2
    flags, _ = free_listeners()
    for path in (ROOT / "catchment.toml", everything):
        ok(run("check", "--config", path, "--data", tmp_path / "data", *flags))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[history]\nflush_intervall_ms = 1000\n", ["catchment.toml:2", "flush_intervall_ms", "flush_interval_ms"]),
        ("http = 'localhost'\n", ["catchment.toml:1"]),
        ("[history\n", ["catchment.toml:1"]),
        ("[gateway.mqtt]\nreceive_maximum = 0\n", ["receive_maximum", "1", "65535"]),
        ("[gateway.mqtt]\nreceive_maximum = -1\n", ["catchment.toml:2"]),
    ],
)
def test_check_tells_where_the_mistake_is(tmp_path, text, words):
    path = tmp_path / "catchment.toml"
    path.write_text(text)
    done = run("check", "--config", path, "--data", tmp_path / "data")
    assert done.returncode == 1
    for word in words:
        assert word in done.stdout + done.stderr, done.stdout + done.stderr


def test_a_bad_variable_is_named(tmp_path):
    done = run("check", "--data", tmp_path, CATCHMENT_HISTORY__FLUSH_INTERVAL_MS="soon")
    assert done.returncode == 1
    assert "CATCHMENT_HISTORY__FLUSH_INTERVAL_MS" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("flag", "url"),
    [
        ("--archive", "s3://b"),
        ("--history", "clickhouse://c"),
        ("--registry", "postgres://p"),
        ("--snapshot", "redis://r"),
    ],
)
def test_an_engine_that_does_not_answer_is_named(tmp_path, flag, url):
    # Redis is waited for: everything else works without it.
    for command in ("check",) if flag == "--snapshot" else ("check", "serve"):
        done = run(command, "--data", tmp_path / "data", flag, url)
        assert done.returncode == 1
        assert url.split(":")[0] in (done.stdout + done.stderr).lower()


def test_an_unknown_engine_is_refused(tmp_path):
    done = run("check", "--data", tmp_path / "data", "--log", "carrier-pigeon://coop")
    assert done.returncode == 1 and "carrier-pigeon" in done.stdout + done.stderr


# Starting.


def test_a_data_folder_has_one_server(server):
    flags, _ = free_listeners()
    done = run("serve", "--data", server.data, *flags)
    assert done.returncode == 1
    assert str(server.process.pid) in done.stderr and str(server.data) in done.stderr


def test_a_port_in_use_is_named(server, tmp_path):
    done = run("serve", "--data", tmp_path / "data", "--http", f"127.0.0.1:{server.http_port}")
    assert done.returncode == 1
    assert str(server.http_port) in done.stderr and "in use" in done.stderr, done.stderr


def test_a_data_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("serve", "--data", tmp_path / "file" / "data")
    assert done.returncode == 1 and "file" in done.stderr and "panicked" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["serv"],
        ["serve", "--htp", "127.0.0.1:1"],
        ["serve", "--http", "here"],
        ["query", "--format", "xml", "SELECT 1"],
        ["device"],
        [],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_explained(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert "--help" in done.stderr or "Usage" in done.stderr


@pytest.mark.parametrize(
    "command", ["serve", "demo", "simulate", "query", "tail", "device", "decoder", "token", "check", "bench"]
)
def test_every_command_explains_itself(command):
    assert command in ok(run("--help"))
    assert "Usage: catchment " + command in ok(run(command, "--help"))
    assert ok(run("help", command))


def test_version():
    assert re.fullmatch(r"catchment \d+\.\d+\.\d+\S*\n", ok(run("--version")))
