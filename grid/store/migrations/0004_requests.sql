-- Releases that wait for their owner's word (release = "approve"), and what became of them.
CREATE TABLE request (
    id       TEXT PRIMARY KEY,
    key      TEXT NOT NULL,
    dataset  TEXT NOT NULL,
    client   TEXT NOT NULL,
    plan     TEXT NOT NULL,
    value    TEXT NOT NULL,
    digest   BLOB NOT NULL,
    code     TEXT NOT NULL,
    report   TEXT NOT NULL,
    asked    REAL NOT NULL,
    decision BLOB NOT NULL,
    used     INTEGER NOT NULL
) STRICT;
