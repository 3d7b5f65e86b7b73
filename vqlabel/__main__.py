"""`python -m vqlabel`."""

from vqlabel.cli import main

if __name__ == "__main__":
    main()
