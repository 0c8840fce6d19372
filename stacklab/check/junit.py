"""Results as JUnit XML, which CI systems show: one test case per check."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

from stacklab.check.result import CheckResult, CheckState
from stacklab.files import write_asked

# What XML 1.0 cannot hold, even escaped; console logs are full of it.
_NOT_XML = re.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")


def write_junit(
    file: Path, results: Sequence[CheckResult], *, lab: str, layers: Mapping[str, int], began: datetime
) -> None:
    """Write the results of one run on a lab, ended just now. layers: the layer of each service."""
    seconds = (datetime.now(UTC) - began).total_seconds()
    counts = {
        "tests": len(results),
        "failures": sum(result.state is CheckState.FAILED for result in results),
        "skipped": sum(result.state is CheckState.SKIPPED for result in results),
        "errors": 0,
    }
    about = {**{name: str(count) for name, count in counts.items()}, "time": f"{seconds:.3f}"}
    top = ElementTree.Element("testsuites", {"name": "stacklab", **about})
    suite = ElementTree.SubElement(
        top, "testsuite", {"name": f"lab {lab}", "timestamp": began.isoformat(timespec="seconds"), **about}
    )
    for result in results:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            {
                "classname": f"layer-{layers[result.service]}.{result.service}",
                "name": _clean(result.name),
                "time": f"{result.seconds:.3f}",
            },
        )
        if result.state is not CheckState.PASSED:
            word = "failure" if result.state is CheckState.FAILED else "skipped"
            said = ElementTree.SubElement(case, word, {"message": _clean(result.error)})
            said.text = _clean(result.detail) or None
    ElementTree.indent(top)
    write_asked(file, ElementTree.tostring(top, encoding="utf-8", xml_declaration=True))


def _clean(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
