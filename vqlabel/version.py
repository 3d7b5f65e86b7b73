"""The version of the package, read by the build and written into every `.vql` file."""

__version__ = "0.1.0"
