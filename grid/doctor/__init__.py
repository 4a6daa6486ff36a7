"""`grid doctor`: looks for the usual mistakes before they cost an afternoon. It changes nothing that lasts."""
