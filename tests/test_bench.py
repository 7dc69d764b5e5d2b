"""The bench of the gateway, as small as it goes: that its figures fit together, not what they are."""

import json

from harness import run


def measure(*arguments):
    done = run("bench", "gateway", "--json", "--duration", "1", *arguments, limit_s=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["results"]


def test_fan_in_counts_what_it_did():
    results = measure("--scenario", "fan-in", "--connections", "3,7", "--qos", "0,1", "--window", "10")
    assert [(one["connections"], one["qos"]) for one in results] == [(3, 0), (3, 1), (7, 0), (7, 1)]
    for one in results:
        assert one["published"] > 0
        assert one["acknowledged"] == (one["published"] if one["qos"] else 0)
        # What the threads used does not exceed what the process used.
        threads = sum(one["threads_cpu_seconds_per_million"].values())
        assert threads <= one["until_in_tables_cpu_seconds_per_million"] * 1.1 + 0.1
        if one["qos"]:
            assert 0 < one["puback_ms"]["p50"] <= one["puback_ms"]["p99.9"]


def test_latency_and_shared_subscriptions_are_complete():
    full, *parts = measure("--scenario", "latency", "--connections", "2", "--window", "5")
    assert [one["load_percent"] for one in parts] == [25, 50, 80]
    assert all(one["acknowledged"] == one["published"] for one in [full, *parts])
    [shared] = measure("--scenario", "shared", "--connections", "2", "--subscribers", "6", "--groups", "3", "--rate", "100")
    assert shared["acknowledged"] == shared["published"] > 0
    assert shared["deliveries"] == shared["deliveries_expected"] == 3 * shared["published"]


def test_idle_connections_and_storms_over_tls_are_counted():
    few, more, published = measure("--scenario", "idle", "--connections", "10,20", "--tls", "--rate", "50")
    assert [(one["connections"], one["opened"], one["tls"]) for one in (few, more)] == [(10, 10, True), (20, 10, True)]
    assert published["published"] == published["acknowledged"] > 0
    arguments = ("--connects", "20", "--tls", "--passwords", "2", "--rate", "50")
    [storm] = measure("--scenario", "storm", *arguments)
    assert (storm["connected"], storm["failed"], storm["passwords"]) == (20, 0, 2)
    assert storm["puback_ms_in_storm"]["p50"] > 0


def test_kept_sessions_are_there_after_a_kill():
    [sessions] = measure("--scenario", "sessions", "--sessions", "30")
    # 200 of them warmed the server up.
    assert (sessions["sessions"], sessions["failed"], sessions["sessions_after_restart"]) == (30, 0, 230)
    assert sessions["journal_bytes_per_session"] > 0
