-- Each get() of a value that needs its owner's word looks for its request.
CREATE INDEX request_key ON request (key);
