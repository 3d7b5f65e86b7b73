"""A full run on 1,000 characters of matplotlib's fonts: teacher, dump, codec, `.vql`, two students. Extra `demo`."""

from vqlabel.demo.run import run_demo

__all__ = ["run_demo"]
