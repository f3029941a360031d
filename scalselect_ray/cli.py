# PYTHON_ARGCOMPLETE_OK
"""The command line.

Exit codes: 0 finished, 1 unforeseen, 2 unusable config, corpus, model or output, 3 too many rejects, 130 interrupted.
"""

import argparse
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import argcomplete

from scalselect_ray import __version__
from scalselect_ray.config import JobConfig
from scalselect_ray.config_files import load_config
from scalselect_ray.console import Console
from scalselect_ray.errors import OutputError, ScalSelectError
from scalselect_ray.io import storage
from scalselect_ray.io.answers import waits_told
from scalselect_ray.redaction import redact, to_json

if TYPE_CHECKING:
    from scalselect_ray.store.layout import Output

_END_S = 8  # an interrupted process is gone by then


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns its exit code."""
    parser = command_line()
    argcomplete.autocomplete(parser)  # ends the process here when a shell asks what could be typed
    options = parser.parse_args(arguments)
    console = Console()
    interruption = _Interruption()
    before = {number: signal.signal(number, interruption) for number in (signal.SIGINT, signal.SIGTERM)}
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with waits_told(console.note):
            answer = options.verb(options, console)
    except BaseException as error:
        if interruption.seen or isinstance(
            error, KeyboardInterrupt
        ):  # libraries turn an interruption into errors of their own
            console.note("interrupted: what is committed stays, and the next run goes on from there")
            return 130
        if not isinstance(error, Exception):
            raise
        if not isinstance(error, ScalSelectError):
            for line in redact(trace := traceback.format_exc(), trace).splitlines():
                console.note(line)
            return 1
        console.error(*error.lines)
        return error.exit_code
    finally:
        if not interruption.seen:
            for number, handler in before.items():
                signal.signal(number, handler)
    if options.json and answer is not None:
        sys.stdout.write(to_json(answer) + "\n")
    return 0


class _Interruption:
    """Ctrl-C, and what is treated as one: SIGTERM, as preemption and `ray job stop` send it.

    From the first one on the process ends: further ones disturb nothing, and what does not end by itself is left
    behind."""

    def __init__(self) -> None:
        self.seen = False

    def __call__(self, signal_number: int, frame: FrameType | None) -> None:
        if self.seen:
            return
        self.seen = True
        last_resort = threading.Timer(_END_S, os._exit, [130])
        last_resort.daemon = True
        last_resort.start()
        raise KeyboardInterrupt


def command_line() -> argparse.ArgumentParser:
    """What can be typed."""
    parser = argparse.ArgumentParser(
        prog="scalselect",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Choose the part of a visual-instruction-tuning corpus worth training on.",
        epilog="""examples:
  scalselect demo                                 the whole job on a corpus and a model that it makes itself
  scalselect init data/train.json                 write config.yaml for a corpus
  scalselect plan config.yaml                     what a run would do, and about how long it would take
  scalselect run config.yaml                      select
  scalselect export selection --to llava --out chosen

'scalselect VERB --help' tells of one verb. Everything is said on stderr (in colour on a terminal, unless NO_COLOR is
set); with --json the result goes to stdout. Exit codes: 0 finished, 1 unforeseen, 2 unusable input, 3 too many rejects,
130 interrupted.

For completion by the tab key put this line into ~/.bashrc or ~/.zshrc (for fish: register-python-argcomplete --help):
  eval "$(register-python-argcomplete scalselect)"
""",
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(
        name: str, call: Callable[[argparse.Namespace, Console], Any], text: str, *examples: str
    ) -> argparse.ArgumentParser:
        shown = "\n".join(["examples:", *(f"  scalselect {name} {example}" for example in examples)])
        added: argparse.ArgumentParser = verbs.add_parser(
            name, help=text, description=f"{text}.", epilog=shown, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        added.add_argument("--json", action="store_true", help="print the result to stdout as JSON")
        added.set_defaults(verb=call)
        return added

    added = verb(
        "init",
        _init,
        "write a config for a corpus, after a look at its first rows",
        "data/train.json",
        "'s3://bucket/a/*.parquet' s3://bucket/b/list.json --model llava-hf/llava-1.5-7b-hf --out mine.yaml",
    )
    added.add_argument(
        "paths", nargs="+", metavar="PATH", help="a file, a folder or a glob; any fsspec URI. Each becomes a source"
    )
    added.add_argument("--model", help="a folder, a folder in a bucket, or a hub id")
    added.add_argument(
        "--out",
        default="config.yaml",
        help="where to write it; a file that is there is never overwritten (default: config.yaml)",
    )
    plan = verb(
        "plan",
        _plan,
        "say what a run would read and do, and about how long it would take",
        "config.yaml",
        "config.yaml extractor.dtype=float16 --json",
        "config.yaml --verify 0.1",
    )
    plan.add_argument(
        "--verify",
        nargs="?",
        const=1.0,
        type=_share,
        metavar="SHARE",
        help="read the pictures of committed slices again, and say which samples have other ones now; of this share of "
        "the slices, spread over the corpus (default: all)",
    )
    select = verb(
        "run",
        _run,
        "select: extract what is new, score everything, write the manifest",
        "config.yaml",
        "config.yaml selection.budget=0.08",
    )
    for added in (plan, select):
        added.add_argument("config", help="YAML file; any fsspec URI")
        added.add_argument("overrides", nargs="*", metavar="key=value", help="such as selection.budget=0.08")
    added = verb(
        "config", _config, "list all keys of a config: what each means, its range and its default", "", "--json"
    )
    added.add_argument(
        "--json-schema", action="store_true", help="instead: print the JSON schema with which editors check a config"
    )
    added = verb("status", _status, "tell the state of an output folder", "selection", "s3://bucket/selection --json")
    added.add_argument("output", help="the `output` of a config")
    added = verb(
        "explain",
        _explain,
        "tell why one sample has its score",
        "selection 000000033471",
        "selection train.json:17",
        "selection 000000033471 --run latest --json",
    )
    added.add_argument("output", help="the `output` of a config")
    added.add_argument(
        "sample", metavar="SAMPLE", help="its id, or SHARD:ROW: the file, or the end of its name, and the row from 0"
    )
    added.add_argument("--run", default="latest", metavar="RUN", help="id of a finished run (default: latest)")
    added = verb(
        "report",
        _report,
        "make the page of a run anew, or of two runs side by side",
        "selection --out page.html",
        "selection --compare latest 20260101T000000000Z-0123abcd",
    )
    added.add_argument("output", help="the `output` of a config")
    which = added.add_mutually_exclusive_group()
    which.add_argument("--run", default="latest", metavar="RUN", help="id of a finished run (default: latest)")
    which.add_argument("--compare", nargs=2, metavar=("A", "B"), help="ids of two finished runs; latest is one as well")
    added.add_argument(
        "--out", metavar="FILE", help="where to write it (default: in the folder of the run, or of run A)"
    )
    added = verb(
        "export",
        _export,
        "write a run's selection in the files that a trainer reads",
        "selection --to llava --out chosen",
        "config.yaml --to webdataset --out s3://bucket/chosen --images copy",
    )
    added.add_argument("output", help="the `output` of a config, or the config itself (.yaml)")
    added.add_argument(
        "--to", required=True, metavar="FORMAT", help="such as llava, hf, webdataset; an unknown one lists them all"
    )
    added.add_argument("--out", required=True, help="a new folder for it; any fsspec URI")
    added.add_argument("--run", default="latest", help="id of a finished run (default: latest)")
    added.add_argument(
        "--images",
        choices=("reference", "copy"),
        help="name images where they lie, or copy them (default: as FORMAT can)",
    )
    added.add_argument(
        "--raw", action="store_true", help="csv: leave cells that a spreadsheet would take for formulas as they are"
    )
    added = verb(
        "clean",
        _clean,
        "list what nothing needs any more below an output folder, and remove it when told to",
        "selection",
        "selection --delete",
        "selection --keep 3 --delete",
        "selection --rejected image_missing --delete",
    )
    added.add_argument("output", help="the `output` of a config")
    which = added.add_mutually_exclusive_group()
    which.add_argument(
        "--keep",
        type=_count,
        metavar="N",
        help="also finished runs but the newest N, and features and moments that they alone need",
    )
    which.add_argument(
        "--rejected",
        metavar="REASON",
        help="instead: slices with rejects of this reason, which the next run then extracts again (a reason of "
        "rejects.parquet)",
    )
    added.add_argument("--delete", action="store_true", help="remove it; without this nothing is touched")
    added = verb(
        "assemble-llava",
        _assemble_llava,
        "make the checkpoint that the paper scores with, LLaVA before its tuning, from its three public parts",
        "--llm vicuna-7b-v1.5 --vision clip-vit-large-patch14-336 --projector pretrain/mm_projector.bin llava-untuned",
        "--llm vicuna --vision clip --projector mm_projector.bin models/llava-untuned --json",
    )
    added.add_argument("--llm", required=True, metavar="DIR", help="the language model, such as lmsys/vicuna-7b-v1.5")
    added.add_argument(
        "--vision", required=True, metavar="DIR", help="the tower, such as openai/clip-vit-large-patch14-336"
    )
    added.add_argument(
        "--projector",
        required=True,
        metavar="FILE",
        help="what was trained between them: the mm_projector.bin of a pretraining of LLaVA 1.5, or safetensors. "
        "Pickles are read here alone, and tensors alone of them",
    )
    added.add_argument("out", metavar="OUT", help="a new folder for it")
    added = verb("demo", _demo, "do the whole job on a small corpus and model that it makes itself", "", "somewhere")
    added.add_argument("folder", nargs="?", default="demo", help="where to put it (default: ./demo)")
    return parser


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"a share is a number above 0 and at most 1, found '{text}'")
    return share


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number of runs is at least 1, found '{text}'")
    return int(text)


def _run(options: argparse.Namespace, console: Console) -> Any:
    config = load_config(options.config, options.overrides)
    from scalselect_ray.commands.run import run  # not before the config is known to be good: it takes seconds

    return run(config, console).to_json()


def _plan(options: argparse.Namespace, console: Console) -> Any:
    config = load_config(options.config, options.overrides)
    from scalselect_ray.commands.plan import plan

    return plan(config, console, options.verify)


def _config(options: argparse.Namespace, console: Console) -> Any:
    from scalselect_ray.commands.config import json_schema, show_keys

    if not options.json_schema:
        return show_keys(console)
    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
    return None


def _output(given: str) -> "Output":
    """The output folder that a verb looks at. Raises OutputError where it is a file."""
    from scalselect_ray.store.layout import Output

    uri = storage.absolute(given)
    if storage.is_file(uri):
        raise OutputError(f"{given} is a file: give the `output` of a config, which is a folder")
    return Output(uri)


def _init(options: argparse.Namespace, console: Console) -> Any:
    from scalselect_ray.commands.init import init

    return init(options.paths, options.model, options.out, console)


def _explain(options: argparse.Namespace, console: Console) -> Any:
    from scalselect_ray.commands.explain import explain

    return explain(_output(options.output), options.sample, options.run, console)


def _status(options: argparse.Namespace, console: Console) -> Any:
    from scalselect_ray.commands.status import status

    _output(options.output)
    return status(options.output, console)


def _clean(options: argparse.Namespace, console: Console) -> Any:
    from scalselect_ray.commands.status import clean
    from scalselect_ray.store.garbage import check_output

    output = _output(options.output)
    check_output(output)
    if options.delete:
        storage.check_folder(output.uri)
    return clean(options.output, options.rejected, options.keep, options.delete, console)


def _report(options: argparse.Namespace, console: Console) -> Any:
    from scalselect_ray.cluster.session import own_errors, session
    from scalselect_ray.report.write import make_comparison, make_report, page_uri
    from scalselect_ray.store.runs import Runs

    output = _output(options.output)
    records = [Runs(output).find(name) for name in options.compare or [options.run]]
    out = page_uri(options.out) if options.out else None
    storage.check_folder(out.rpartition("/")[0] if out else output.run(records[0].run_id).uri)
    with session(console), own_errors():
        uri = (
            make_comparison(output, records[0], records[1], out)
            if options.compare
            else make_report(output, records[0], out)
        )
    console.note(uri)
    return {"report": uri}


def _export(options: argparse.Namespace, console: Console) -> Any:
    is_config = options.output.endswith((".yaml", ".yml"))
    output = load_config(options.output).output if is_config else storage.absolute(options.output)
    from scalselect_ray.exports.flow import export

    return export(_output(output), options.run, options.to, options.out, options.images, console, options.raw)


def _assemble_llava(options: argparse.Namespace, console: Console) -> Any:
    from scalselect_ray.commands.assemble import assemble_llava

    return assemble_llava(options.llm, options.vision, options.projector, options.out, console)


def _demo(options: argparse.Namespace, console: Console) -> Any:
    from scalselect_ray.commands.demo import make_demo
    from scalselect_ray.commands.run import run

    config: JobConfig = load_config(make_demo(options.folder))
    console.note(f"made a corpus of 200 pictures, a small model with random weights, and {options.folder}/config.yaml")
    return run(config, console).to_json()
