-- What each dataset has released, and names that may be taken once (secure sums).
CREATE TABLE dataset (
    name      TEXT PRIMARY KEY,
    rows      INTEGER NOT NULL,
    min_rows  INTEGER NOT NULL,
    blocks    BLOB NOT NULL,
    partition BLOB NOT NULL,
    elements  INTEGER NOT NULL
) STRICT;

CREATE TABLE claim (
    name   TEXT PRIMARY KEY,
    expiry REAL NOT NULL
) STRICT;

CREATE INDEX claim_expiry ON claim (expiry);
