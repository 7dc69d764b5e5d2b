-- For PostgreSQL only: names are compared by their bytes, as SQLite does, whatever the database's locale.

ALTER TABLE devices ALTER COLUMN realm TYPE TEXT COLLATE "C", ALTER COLUMN device_id TYPE TEXT COLLATE "C";
ALTER TABLE tokens ALTER COLUMN realm TYPE TEXT COLLATE "C", ALTER COLUMN device_id TYPE TEXT COLLATE "C";
ALTER TABLE passwords ALTER COLUMN realm TYPE TEXT COLLATE "C", ALTER COLUMN device_id TYPE TEXT COLLATE "C";
ALTER TABLE decoders ALTER COLUMN realm TYPE TEXT COLLATE "C", ALTER COLUMN event_type TYPE TEXT COLLATE "C";
ALTER TABLE routes ALTER COLUMN topic TYPE TEXT COLLATE "C";
