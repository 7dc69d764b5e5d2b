"""`kill -9` at any moment loses no acknowledged event and doubles none in history.

The server is killed and started again at random moments under load, sometimes while it still starts. The seed is
printed; `CATCHMENT_SEED=… cargo xtask test -k kill` repeats the same schedule.
"""

import os
import random
import secrets
import time

from harness import eventually
from harness.load import check_stored, publishers

KILLS = int(os.environ.get("CATCHMENT_KILLS", "20"))

# Everything that happens at some time in production happens here within seconds.
BUSY = """
[history]
flush_interval_ms = 1000
maintenance_interval_ms = 1000
compact_files_min = 2
vacuum_grace_ms = 1000
"""


def test_kill_under_load(new_server, capsys):
    seed = int(os.environ.get("CATCHMENT_SEED", secrets.randbits(32)))
    with capsys.disabled():
        print(f"\nkill test: CATCHMENT_SEED={seed}", flush=True)
    moments = random.Random(seed)
    server = new_server(config=BUSY).start()
    load = publishers(server, "kill")
    for publisher in load:
        publisher.start()
    for _ in range(KILLS):
        time.sleep(moments.uniform(0.05, 2.0))
        server.kill()
        server.spawn()
        while moments.random() < 0.25:
            time.sleep(moments.uniform(0.0, 0.3))
            server.kill()
            server.spawn()
        server.wait_ready()
    for publisher in load:
        publisher.finish()
    acknowledged = sum(len(publisher.acknowledged) for publisher in load)
    assert acknowledged > 50 * KILLS, "the load was too light to prove anything"
    wait_for_all(server, load)
    check_history(server, load)
    # Nothing of this depends on what the process had in memory.
    server.restart()
    wait_for_all(server, load)
    check_history(server, load)
    # Nor on what was left to do at its orderly end.
    server.stop()
    server.start()
    check_history(server, load)


def wait_for_all(server, load):
    """After a start the tail of the log is taken in while queries are answered already. One more event of each device is
    the last of its partition: once it is there, everything before it is."""
    for publisher in load:
        server.post_event(publisher.device, publisher.document(publisher.sent))
        publisher.acknowledged.add(publisher.sent)
        publisher.sent += 1
    for publisher in load:
        query = (
            "SELECT metric_value FROM raw_metrics WHERE metric_name = 'seq' AND metric_value = "
            f"{publisher.sent - 1} AND device_id = '{publisher.device}'"
        )
        eventually(lambda query=query: server.sql(query), 60, f"the last event of {publisher.device}")


def check_history(server, load):
    stored = sum(check_stored(server, publisher) for publisher in load)
    assert server.value("SELECT count(*) FROM raw_events") == stored
    assert server.value("SELECT count(*) FROM raw_metrics") == 3 * stored
    assert server.value("SELECT count(*) FROM rejects") == 0
    # A log offset is one event, in each table once.
    doubled_events = "SELECT log_partition, log_offset FROM raw_events GROUP BY 1, 2 HAVING count(*) > 1 LIMIT 5"
    assert server.sql(doubled_events) == []
    doubled_readings = (
        "SELECT log_partition, log_offset, metric_name FROM raw_metrics GROUP BY 1, 2, 3 HAVING count(*) > 1 LIMIT 5"
    )
    assert server.sql(doubled_readings) == []
    without_event = (
        "SELECT count(*) FROM raw_metrics m LEFT JOIN raw_events e"
        " ON m.log_partition = e.log_partition AND m.log_offset = e.log_offset AND m.device_id = e.device_id"
        " WHERE e.device_id IS NULL"
    )
    assert server.value(without_event) == 0
    # The rollup is that of the raw rows, to the last one.
    from_raw = (
        "SELECT device_id, metric_name, date_trunc('minute', timestamp) AS minute, count(*), min(metric_value),"
        " max(metric_value), sum(metric_value) FROM raw_metrics WHERE metric_value IS NOT NULL GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    )
    from_rollup = (
        "SELECT device_id, metric_name, time_bucket, count, min_value, max_value, avg_value * count"
        " FROM aggregated_metrics ORDER BY 1, 2, 3"
    )
    expected, rolled = server.sql(from_raw), server.sql(from_rollup)
    assert [row[:6] for row in rolled] == [row[:6] for row in expected]
    assert all(abs(a[6] - b[6]) <= 1e-9 * abs(b[6]) for a, b in zip(rolled, expected, strict=True))
