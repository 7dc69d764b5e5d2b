"""The real services that engines and tests work with: installed, started, found and stopped in one place.

Both `cargo xtask services` (through `__main__`) and the fixtures of the tests use this. A service listens on a free port
of loopback, keeps everything in a folder of its own below the target folder, and goes on with its data when it is started
again. An address in the environment (`CATCHMENT_TEST_KAFKA`, …) is an operator's own service: nothing is started then.
"""

from .base import Service, ServiceError
from .kinds import KINDS, S3, ClickHouse, Kafka, Mosquitto, Postgres, Redis

__all__ = ["KINDS", "S3", "ClickHouse", "Kafka", "Mosquitto", "Postgres", "Redis", "Service", "ServiceError"]
