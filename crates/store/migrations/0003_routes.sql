-- Routes that were added while running: which topics become events. Runs on SQLite and on PostgreSQL.

CREATE TABLE routes (
    topic      TEXT   NOT NULL PRIMARY KEY,   -- the template, which is the route's name
    rule       TEXT   NOT NULL,               -- JSON
    created_at BIGINT NOT NULL
);
