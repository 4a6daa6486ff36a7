-- How a client's card calls it, beside its id, for the owner who answers its request.
ALTER TABLE request ADD COLUMN client_name TEXT NOT NULL DEFAULT '';
