-- What the newest version of a model that was asked said of each image; made again at any time.
CREATE TABLE scores (
    image      TEXT NOT NULL REFERENCES images (id),
    model      TEXT NOT NULL,
    version    INTEGER NOT NULL,
    asked      TEXT NOT NULL,                      -- how the model was asked
    size_bytes INTEGER NOT NULL,                   -- of the image's file then
    mtime_s    INTEGER NOT NULL,                   -- likewise
    scores     TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (image, model)
) STRICT;
