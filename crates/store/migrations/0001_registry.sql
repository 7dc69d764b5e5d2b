-- Devices, decoders and tokens. Times are microseconds since the Unix epoch, UTC. Runs on SQLite and on PostgreSQL.

CREATE TABLE devices (
    realm      TEXT   NOT NULL,
    device_id  TEXT   NOT NULL,
    labels     TEXT,              -- a JSON object, or NULL
    created_at BIGINT NOT NULL,
    PRIMARY KEY (realm, device_id)
);

CREATE TABLE decoders (
    realm      TEXT   NOT NULL,
    event_type TEXT   NOT NULL,   -- '*' is the rule of all types without one of their own
    rule       TEXT   NOT NULL,   -- JSON
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (realm, event_type)
);

CREATE TABLE tokens (
    id         TEXT   NOT NULL PRIMARY KEY,
    realm      TEXT   NOT NULL,
    name       TEXT   NOT NULL,
    role       TEXT   NOT NULL CHECK (role IN ('admin', 'reader', 'device')),
    device_id  TEXT,              -- the one device that a token of role 'device' may speak for
    sha256     TEXT   NOT NULL UNIQUE,
    created_at BIGINT NOT NULL,
    CHECK ((role = 'device') = (device_id IS NOT NULL)),
    FOREIGN KEY (realm, device_id) REFERENCES devices (realm, device_id) ON DELETE CASCADE
);

CREATE INDEX tokens_by_device ON tokens (realm, device_id);
