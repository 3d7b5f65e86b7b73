"""One file a dump layout, its reader above its writer; and the kinds of file that they are made of."""
