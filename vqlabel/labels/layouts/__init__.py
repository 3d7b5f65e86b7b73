"""One module per dump layout, its reader above its writer; and modules for the file types that layouts consist of."""
