"""A finished run as tables for a terminal, as JSON, and as the results block of `docs/performance.md`."""

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.figures import FIGURES, Check, Figure, Samples, Spread, checks
from bench.toolchain import BenchError

BEGIN = "<!-- bench results: begin (written by `make bench ARGS=--write-docs`) -->"
END = "<!-- bench results: end -->"
_SHOWN = ("direct", "farebox", "envoy", "nginx", "litellm")
_OWN = ("memory-journal", "many-keys")


@dataclass
class Report:
    """Everything that is shown of a run."""

    machine: str
    load_before: float
    settings: str
    samples: Samples = field(default_factory=Samples)
    footprint: dict[str, Spread] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    metered: int = 0
    served: int = 0
    when: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))

    def as_json(self) -> dict[str, Any]:
        """Every figure with its range, every value that it came of, every check."""
        figures = {
            name: {
                key: asdict(_spread(self.samples, name, key)) | {"rounds": values}
                for key, values in found.items()
            }
            for name, found in self.samples.by_target.items()
        }
        return {
            "machine": self.machine,
            "when": self.when,
            "load_average_before": self.load_before,
            "settings": self.settings,
            "versions": self.versions,
            "figures": figures,
            "checks": [asdict(check) | {"met": check.met} for check in checks(self.samples)],
            "footprint": {what: asdict(found) for what, found in self.footprint.items()},
            "metered": self.metered,
            "served": self.served,
            "notes": self.notes,
        }

    def introduction(self) -> list[str]:
        """When, where, what."""
        lines = [
            f"{self.when}, {self.machine}. Load average before the run: {self.load_before}. {self.settings}."
        ]
        if self.versions:
            lines.append("Measured: " + ", ".join(self.versions.values()) + ".")
        if self.served:
            equal = "=" if self.metered == self.served else "≠"
            lines.append(
                f"Calls metered {equal} calls served by the engine: {self.metered:,} {equal} {self.served:,}."
            )
        return lines + [f"Note: {note}" for note in self.notes]


def tables(report: Report) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, head and rows of each table that has any."""
    samples = report.samples
    shown = [name for name in _SHOWN if name in samples.by_target]
    found = [("Figures", ["", *shown, "farebox ÷ envoy"], _figure_rows(samples, shown))]
    own = [name for name in _OWN if name in samples.by_target]
    found.append(
        (
            "Our gateway under other conditions",
            ["", "farebox", *own],
            _figure_rows(samples, ["farebox", *own]),
        )
    )
    if not own:
        found.pop()
    judged = [_check_row(check) for check in checks(samples)]
    found.append(("Targets", ["", "measured", "at most", "aim", ""], judged))
    idle = [[what, _number(value, 2)] for what, value in report.footprint.items()]
    found.append(("When nothing happens", ["", "measured"], idle))
    return [table for table in found if table[2]]


def _figure_rows(samples: Samples, names: Sequence[str]) -> list[list[str]]:
    rows = []
    for figure in FIGURES:
        spreads = [samples.spread(name, figure.key) for name in names]
        if "memory-journal" in names or "many-keys" in names:
            if not any(spreads[1:]):
                continue
            rows.append([_title(figure), *(_number(s, figure.digits) for s in spreads)])
        elif any(spreads):
            ratio = samples.ratio("farebox", figure.key, "envoy") if figure.compared else None
            cells = [_number(s, figure.digits) for s in spreads]
            rows.append([_title(figure), *cells, f"{_number(ratio, 2)} ×" if ratio else ""])
    return rows


def _check_row(check: Check) -> list[str]:
    digits = 2 if check.unit in ("×", "ms") else 1
    aim = "" if check.aim is None else f"{check.aim:g} {check.unit}"
    verdict = "met" if check.met else "NOT met"
    measured = f"{_number(check.measured, digits)} {check.unit}"
    return [check.what, measured, f"{check.at_most:g} {check.unit}", aim, verdict]


def _title(figure: Figure) -> str:
    return f"{figure.title}, {figure.unit}" if figure.unit else figure.title


def _number(value: Spread | None, digits: int) -> str:
    """The median, and the range where there is one."""
    if value is None:
        return ""
    text = f"{value.median:,.{digits}f}"
    low, high = f"{value.low:,.{digits}f}", f"{value.high:,.{digits}f}"
    return text if low == high else f"{text} ({low}–{high})"


def _spread(samples: Samples, name: str, key: str) -> Spread:
    found = samples.spread(name, key)
    assert found is not None, "taken from the samples themselves"
    return found


def print_report(report: Report) -> None:
    """For people."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 130)
    for line in report.introduction():
        console.print(line)
    for title, head, rows in tables(report):
        table = Table(title=title, title_justify="left")
        for number, name in enumerate(head):
            table.add_column(name, justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def markdown(report: Report) -> str:
    """For `docs/performance.md`."""
    parts = ["\n".join(f"- {line}" for line in report.introduction())]
    for title, head, rows in tables(report):
        align = [":--", *("--:" for _ in head[1:])]
        parts.append(f"### {title}\n\n" + "\n".join(_markdown_row(row) for row in [head, align, *rows]))
    return "\n\n".join(parts)


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def replace_block(page: str, text: str) -> str:
    """`page` with what stands between the two comments replaced. BenchError when they are not there once each."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise BenchError(
            "docs/performance.md must have the two comments around the results, once each, in order"
        )
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}"
