"""The whole story on 1,000 characters drawn from matplotlib's fonts: teacher, dump, codec, `.vql`, two students. Extra `demo`."""

from vqlabel.demo.story import run_demo

__all__ = ["run_demo"]
