-- Numbers that every /info/ asks for, kept by triggers: counting 100,000 images for each request takes too long.
CREATE TABLE counters (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT;

INSERT INTO counters VALUES
    ('images_present', (SELECT count(*) FROM images WHERE state = 'present')),
    ('label_changes', 0);  -- rises whenever the counts of labels may be others

CREATE TRIGGER image_added AFTER INSERT ON images WHEN NEW.state = 'present' BEGIN
    UPDATE counters SET value = value + 1 WHERE name = 'images_present';
END;
CREATE TRIGGER image_state_changed AFTER UPDATE OF state ON images WHEN OLD.state <> NEW.state BEGIN
    UPDATE counters SET value = value + (NEW.state = 'present') - (OLD.state = 'present') WHERE name = 'images_present';
    UPDATE counters SET value = value + 1 WHERE name = 'label_changes';
END;
CREATE TRIGGER label_pointed AFTER INSERT ON label_pointers BEGIN
    UPDATE counters SET value = value + 1 WHERE name = 'label_changes';
END;
CREATE TRIGGER label_pointed_elsewhere AFTER UPDATE ON label_pointers BEGIN
    UPDATE counters SET value = value + 1 WHERE name = 'label_changes';
END;

-- Somebody looked and says that a revision also fits the image whose content is now another one.
CREATE TABLE label_confirmations (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,
    label        INTEGER NOT NULL REFERENCES labels (seq),
    image_sha256 TEXT NOT NULL,
    author       TEXT NOT NULL,
    created_ms   INTEGER NOT NULL,
    UNIQUE (label, image_sha256)
) STRICT;

-- A hash of every row; see store/rows/seal.rs.
CREATE TABLE row_seals (
    tbl  TEXT NOT NULL,
    key  TEXT NOT NULL,
    seal TEXT NOT NULL,
    PRIMARY KEY (tbl, key)
) STRICT, WITHOUT ROWID;
