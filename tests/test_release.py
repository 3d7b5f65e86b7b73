"""Files of a release: equal versions, and pinned dependencies in CI."""

import re
import tomllib

from paths import ROOT

import vqlabel
from vqlabel.version import __version__


def test_package_citation_and_changelog_have_the_same_version() -> None:
    cited = re.search(r'^version: "(.+)"$', (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    newest = re.search(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert cited
    assert newest
    assert vqlabel.__version__ == __version__ == cited[1] == newest[1]


def test_ci_pins_every_required_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = project["dependencies"] + extras["baselines"] + extras["demo"] + extras["docs"] + extras["plot"] + extras["test"]
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / ".ci" / "constraints.txt").read_text(), re.MULTILINE))
    assert {re.split(r"[\[>=<]", requirement)[0] for requirement in required} <= pinned
