"""One module per dump layout, with its reader above its writer, and the modules for the file types that the layouts consist of."""
