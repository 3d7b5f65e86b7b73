"""Full runs on data that every installation can make: teacher, dump, codec, `.vql`, students.

`run_demo` draws 1,000 characters in matplotlib's fonts (extra `demo`); `run_text_demo` reads the help texts of Python.
"""

from vqlabel.demo.run import run_demo
from vqlabel.demo.text import run_text_demo

__all__ = ["run_demo", "run_text_demo"]
