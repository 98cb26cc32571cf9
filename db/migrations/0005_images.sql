-- Images that the platform keeps.

CREATE TABLE images (
    name       TEXT PRIMARY KEY, -- with its tag
    content    TEXT NOT NULL, -- ImageContent
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What the image of a version is (ImageContent), where the platform kept it when the version was built.
ALTER TABLE versions ADD COLUMN image TEXT;
