-- Who works on which image and until when; the row goes when the image is labelled or given back.
CREATE TABLE leases (
    image    TEXT PRIMARY KEY REFERENCES images (id),
    client   TEXT NOT NULL,
    strategy TEXT NOT NULL,
    taken_ms INTEGER NOT NULL,
    until_ms INTEGER NOT NULL
) STRICT;

CREATE INDEX leases_by_client ON leases (client);

-- What a round learned from, what it made and what was decided about it. Where it stands meanwhile is in its job.
CREATE TABLE rounds (
    number      INTEGER PRIMARY KEY AUTOINCREMENT,
    job         TEXT NOT NULL UNIQUE REFERENCES jobs (id),
    model       TEXT NOT NULL,
    cause       TEXT NOT NULL CHECK (cause IN ('request', 'labels', 'schedule')),
    actor       TEXT NOT NULL,
    labels_seq  INTEGER NOT NULL,                  -- the last label revision when it was asked for
    created_ms  INTEGER NOT NULL,
    started_ms  INTEGER,
    plan        TEXT,                              -- fixed when it starts, so that a second worker continues the same
    finished_ms INTEGER,
    decision    TEXT CHECK (decision IN ('published', 'kept')),
    reason      TEXT,
    version     INTEGER,
    comparison  TEXT
) STRICT;

-- A version is a candidate until it served for the first time or somebody decided that it will not.
ALTER TABLE models ADD COLUMN state TEXT NOT NULL DEFAULT 'published' CHECK (state IN ('candidate', 'kept', 'published'));
ALTER TABLE models ADD COLUMN reason TEXT NOT NULL DEFAULT '';

-- A pinned version is not replaced by rounds.
ALTER TABLE live_models ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;

-- Append-only: what went live when, and which version it replaced.
CREATE TABLE publications (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    name       TEXT NOT NULL,
    version    INTEGER NOT NULL,
    replaced   INTEGER,
    rollback   INTEGER NOT NULL,
    actor      TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    FOREIGN KEY (name, version) REFERENCES models (name, version)
) STRICT;

CREATE INDEX publications_by_version ON publications (name, version, seq);

-- Until now every version went live when it was made, those of other folders given with --model excepted.
INSERT INTO publications (name, version, replaced, rollback, actor, created_ms)
SELECT m.name, m.version,
       (SELECT max(e.version) FROM models AS e WHERE e.name = m.name AND e.version < m.version), 0, 'server', m.created_ms
FROM models AS m ORDER BY m.seq;
