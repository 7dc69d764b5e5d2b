-- Realms with their limits, passwords of devices, rules about topics, bans. Runs on SQLite and on PostgreSQL.

CREATE TABLE realms (
    name          TEXT   NOT NULL PRIMARY KEY,
    limits        TEXT   NOT NULL,   -- JSON: of the whole realm
    device_limits TEXT   NOT NULL,   -- JSON: of each device in it
    created_at    BIGINT NOT NULL
);

INSERT INTO realms (name, limits, device_limits, created_at) VALUES ('main', '{}', '{}', 0);

CREATE TABLE passwords (
    realm      TEXT   NOT NULL,
    device_id  TEXT   NOT NULL,
    argon2id   TEXT   NOT NULL,      -- in the PHC string format
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (realm, device_id),
    FOREIGN KEY (realm, device_id) REFERENCES devices (realm, device_id) ON DELETE CASCADE
);

CREATE TABLE acl (
    id         TEXT   NOT NULL PRIMARY KEY,
    realm      TEXT   NOT NULL,
    subject    TEXT   NOT NULL,      -- all, readers, devices or device:ID
    action     TEXT   NOT NULL,      -- publish, subscribe or any
    effect     TEXT   NOT NULL,      -- allow or deny
    filter     TEXT   NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE bans (
    id         TEXT   NOT NULL PRIMARY KEY,
    realm      TEXT   NOT NULL,
    kind       TEXT   NOT NULL CHECK (kind IN ('device', 'client', 'address')),
    value      TEXT   NOT NULL,      -- a device id, an MQTT client id, an address or a network as ADDRESS/BITS
    reason     TEXT   NOT NULL,
    until      BIGINT,               -- NULL: until it is lifted
    created_at BIGINT NOT NULL
);
