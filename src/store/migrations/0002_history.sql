-- Which revision of a label is the current one, where each revision comes from, and which images are held out.

-- Who sent a revision with what: client, tool, tool_version, seconds_open, voxels_changed, proposal.
ALTER TABLE labels ADD COLUMN provenance TEXT NOT NULL DEFAULT '{}';
-- Of the grid that the revision lies on; empty for revisions of schema 1.
ALTER TABLE labels ADD COLUMN geometry_sha256 TEXT NOT NULL DEFAULT '';

-- The one pointer per image and tag. It moves with every submit and deletion, and by command to an older revision;
-- the audit log holds its moves.
CREATE TABLE label_pointers (
    image    TEXT NOT NULL,
    tag      TEXT NOT NULL,
    revision INTEGER NOT NULL,
    PRIMARY KEY (image, tag),
    FOREIGN KEY (image, tag, revision) REFERENCES labels (image, tag, revision)
) STRICT, WITHOUT ROWID;

INSERT INTO label_pointers (image, tag, revision)
SELECT image, tag, max(revision) FROM labels GROUP BY image, tag;

DROP VIEW current_labels;
CREATE VIEW current_labels AS
SELECT l.* FROM label_pointers AS p
JOIN labels AS l ON l.image = p.image AND l.tag = p.tag AND l.revision = p.revision
WHERE l.deleted = 0;

-- Append-only: the last row of an image holds.
CREATE TABLE splits (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    image      TEXT NOT NULL REFERENCES images (id),
    patient    TEXT NOT NULL,                      -- the image's id where no patient is known
    part       TEXT NOT NULL CHECK (part IN ('train', 'validation', 'test')),
    reason     TEXT NOT NULL CHECK (reason IN ('first sight', 'same patient', 'command')),
    actor      TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;

CREATE INDEX splits_by_image ON splits (image, seq);
CREATE INDEX splits_by_patient ON splits (patient, seq);

CREATE VIEW current_splits AS
SELECT * FROM splits AS s
WHERE s.seq = (SELECT max(t.seq) FROM splits AS t WHERE t.image = s.image);

-- Images that a strategy served or a round learned from or validated on: their part is fixed from then on.
CREATE TABLE split_uses (
    image      TEXT PRIMARY KEY REFERENCES images (id),
    used_for   TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;

INSERT INTO split_uses (image, used_for, created_ms)
SELECT image, 'a next sample', min(created_ms) FROM servings GROUP BY image;

-- The proposal that a client got for an image is found again when its correction comes.
CREATE INDEX jobs_by_image ON jobs (json_extract(payload, '$.image.study.id'), seq) WHERE kind = 'infer';
CREATE INDEX servings_by_image ON servings (image, client, created_ms);
