"""The codec of LPQLD: the k largest entries of a label."""
