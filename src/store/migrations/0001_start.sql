-- Rows of one project. Times are milliseconds since 1970-01-01 UTC; JSON is kept as text.

CREATE TABLE settings (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE images (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of first sight
    id         TEXT NOT NULL UNIQUE,
    ext        TEXT NOT NULL,
    source     TEXT NOT NULL CHECK (source IN ('study', 'blob')),
    file       TEXT NOT NULL,                      -- name in the studies folder, or hash of the blob
    state      TEXT NOT NULL CHECK (state IN ('present', 'missing', 'deleted')),
    size_bytes INTEGER NOT NULL,
    mtime_ms   INTEGER NOT NULL,
    sha256     TEXT,                               -- of the file with this size and mtime
    geometry   TEXT,                               -- likewise
    info       TEXT NOT NULL
) STRICT;

-- Append-only: a submit adds a revision, a deletion adds a tombstone. Only `extra` may change.
CREATE TABLE labels (
    seq               INTEGER PRIMARY KEY AUTOINCREMENT,
    image             TEXT NOT NULL REFERENCES images (id),
    tag               TEXT NOT NULL,
    revision          INTEGER NOT NULL,            -- 1, 2, ... per (image, tag)
    parent            INTEGER,
    position          INTEGER NOT NULL,            -- order of the tag among the tags of its image
    deleted           INTEGER NOT NULL,
    ext               TEXT NOT NULL,
    sha256            TEXT NOT NULL,
    normalised_sha256 TEXT NOT NULL,
    size_bytes        INTEGER NOT NULL,
    author            TEXT NOT NULL,
    origin            TEXT NOT NULL,
    params            TEXT NOT NULL,               -- as the client sent it
    extra             TEXT NOT NULL,               -- merged in afterwards
    annotated         TEXT NOT NULL,
    image_sha256      TEXT NOT NULL,
    created_ms        INTEGER NOT NULL,
    idempotency_key   TEXT UNIQUE,
    UNIQUE (image, tag, revision)
) STRICT;

CREATE VIEW current_labels AS
SELECT * FROM labels AS l
WHERE l.deleted = 0
  AND l.revision = (SELECT max(m.revision) FROM labels AS m WHERE m.image = l.image AND m.tag = l.tag);

-- Append-only; each row holds the hash of itself with the hash before it.
CREATE TABLE audit (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    created_ms INTEGER NOT NULL,
    actor      TEXT NOT NULL,
    action     TEXT NOT NULL,
    subject    TEXT NOT NULL,
    detail     TEXT NOT NULL,
    hash       TEXT NOT NULL
) STRICT;

CREATE TABLE servings (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    strategy   TEXT NOT NULL,
    image      TEXT NOT NULL REFERENCES images (id),
    client     TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE jobs (
    seq            INTEGER PRIMARY KEY AUTOINCREMENT,
    id             TEXT NOT NULL UNIQUE,
    kind           TEXT NOT NULL,
    priority       INTEGER NOT NULL,
    state          TEXT NOT NULL CHECK (state IN ('SUBMITTED', 'RUNNING', 'DONE', 'ERROR', 'STOPPED')),
    payload        TEXT NOT NULL,
    request        TEXT NOT NULL,
    progress       TEXT NOT NULL DEFAULT 'null',
    details        TEXT NOT NULL DEFAULT '[]',
    result         TEXT NOT NULL DEFAULT 'null',
    error          TEXT,
    attempts       INTEGER NOT NULL DEFAULT 0,
    fence          INTEGER NOT NULL DEFAULT 0,
    worker         TEXT,
    lease_until_ms INTEGER,
    created_ms     INTEGER NOT NULL,
    finished_ms    INTEGER
) STRICT;

CREATE INDEX jobs_by_state ON jobs (state, priority DESC, seq);
CREATE INDEX jobs_by_kind ON jobs (kind, seq);

CREATE TABLE sessions (
    id             TEXT PRIMARY KEY,
    name           TEXT NOT NULL,
    image          TEXT NOT NULL,                  -- file name in the session's directory; empty: the directory
    created_ms     INTEGER NOT NULL,
    last_access_ms INTEGER NOT NULL,
    expiry_s       INTEGER NOT NULL
) STRICT;

CREATE TABLE models (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    name       TEXT NOT NULL,
    version    INTEGER NOT NULL,
    sha256     TEXT NOT NULL,                      -- over the names and contents of all files
    weights_sha256 TEXT NOT NULL,
    parent     INTEGER,
    created_ms INTEGER NOT NULL,
    metrics    TEXT NOT NULL,
    lineage    TEXT NOT NULL,
    UNIQUE (name, version)
) STRICT;

CREATE TABLE live_models (
    name    TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    FOREIGN KEY (name, version) REFERENCES models (name, version)
) STRICT;

CREATE INDEX labels_by_blob ON labels (sha256);
CREATE INDEX labels_by_normalised_blob ON labels (normalised_sha256);
CREATE INDEX images_by_file ON images (file);
