"""Every layout by its name, in the order in which they are tried."""

from importlib import import_module

from vqlabel.labels.layouts.layout import Layout

_MODULES = {  # name -> module that has it as LAYOUT
    "sre2l": "sre2l",
    "lpld": "lpld",
    "gvbsm": "gvbsm",
    "edc": "edc",
    "hald": "hald",
    "lpqld": "lpqld",
    "arrays": "shards",
    "tinyvit": "tinyvit",
    "fkd": "fkd",
    "tensor": "tensor",
}
LAYOUTS: dict[str, Layout] = {name: import_module(f"vqlabel.labels.layouts.{module}").LAYOUT for name, module in _MODULES.items()}
