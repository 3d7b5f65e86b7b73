"""The k largest entries of a label, as LPQLD stores them."""
