-- A gateway's memory: the nodes that it has known, each with what it announced last.
CREATE TABLE node (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL,
    organisation TEXT NOT NULL,
    card         BLOB NOT NULL,
    announcement BLOB NOT NULL,
    since        REAL NOT NULL,
    online       INTEGER NOT NULL
) STRICT;
