-- How the rows of a dataset's releases were chosen: 'positions', 'blocks', or '' while every release was of all rows.
-- Of older releases that is known only where they drew one cell of all rows. The others count as drawn by both.
ALTER TABLE dataset ADD COLUMN drawn TEXT NOT NULL DEFAULT '';

UPDATE dataset SET drawn = 'both'
    WHERE length(partition) > 0 AND hex(partition) <> replace(hex(zeroblob(rows)), '00', '01000000');
