"""All rows of the census: those of every file beside this one."""

from importlib import import_module
from pkgutil import iter_modules

import support.census
from support.census.case import Case

_FILES = [module.name for module in iter_modules(support.census.__path__) if module.name != "cases"]

CASES: dict[str, Case] = {
    case.name: case for name in _FILES for case in getattr(import_module(f"support.census.{name}"), "CASES", ())
}
"""By name."""
