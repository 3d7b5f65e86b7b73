"""One public call a file: fit, tune, pack, unpack, convert, verify, relabel."""
