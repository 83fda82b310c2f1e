"""The command `tubelet`: names and options in, one action out. Torch is imported only by an action that needs it."""

from __future__ import annotations

import itertools
import json
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tubelet import cli_data as cli_data  # its commands are the first of the list
from tubelet import registry
from tubelet.command import (
    ROOT,
    Dotted,
    argument,
    command,
    dispatch,
    flag,
    number,
    option_rows,
    printed,
    rate,
    signature,
    signed,
    usage_error,
    whole,
)
from tubelet.data import storage
from tubelet.types import TubeletError

FPS = argument("--fps", type=rate, metavar="X", help="pictures a second, where it is pictures (default: 30)")
VIDEO = "a file, a folder or archive of pictures, a sample of a shard (shard.tar/KEY), or the URL of one"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and answers its exit code.

    0: done. 1: a TubeletError. 2: usage. 130: interrupted. 75: pre-empted (SIGTERM or SIGUSR1), and the same command
    goes on. Training that stalls for good ends with 76, without coming back here (`train.watchdog`).
    """
    try:
        dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except TubeletError as error:
        usage = type(error).__name__ == "UsageError"  # by name: its module is loaded only where it is needed
        return _complain(str(error), 2 if usage else 1)
    except KeyboardInterrupt as error:
        return _complain(
            str(error)
            or "stopped; the same command starts again, and `tubelet train` goes on from its last checkpoint",
            getattr(error, "exit_code", 130),  # training that has saved says how it was asked to stop
        )
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its exit
    except OSError as error:  # a folder that cannot be written to, a full disk
        if error.filename is None and error.errno is None:
            raise
        return _complain(f"{error.filename or 'the disk'}: {error.strerror}", 1)
    return 0


def _complain(text: str, code: int) -> int:
    """One line; of several processes that start alike only the first speaks, later each for itself."""
    from tubelet.log import CONTROLS

    rank = os.environ.get("RANK", "0")
    distributed = sys.modules.get("torch.distributed")
    started = distributed is not None and distributed.is_available() and distributed.is_initialized()
    if rank == "0" or started:
        who = f"process {rank}: " if rank != "0" else ""
        label = "" if code in (130, 75) else "error: "
        print(f"{label}{who}{' '.join(text.split()).translate(CONTROLS)}", file=sys.stderr)
    return code


# The commands import what they need themselves, so that help and mistakes are answered at once.


def _recipe_help(args: Namespace | None) -> str:
    """Every option of a recipe, with the values that it would have."""
    from tubelet import chain, recipe

    if args is not None and getattr(args, "recipe", None) and (path := chain.find(args.recipe)):
        links = [link.name for link in chain.load(path, args.dotted).links]
        return (
            f"\n{args.recipe} is a chain of runs: {', '.join(links)}. Options such as --train.length are of all of\n"
            f"them, --{links[0]}.train.length of one; `tubelet show {args.recipe}` has their values."
        )
    if args is None or not getattr(args, "recipe", None):
        learner, backbone, tasks, parts, values = "videomae", "vit", ["knn"], {}, {}
        word = "default"
        head = (
            f"\nPackaged recipes: {', '.join(name for name in recipe.packaged() if '/' not in name)}, and those that "
            "`tubelet list` has. The options of yours: tubelet train RECIPE --help\n"
        )
    else:
        chosen = recipe.load(args.recipe, args.dotted)
        learner, backbone, tasks = chosen.learner["name"], chosen.backbone["name"], list(chosen.evaluate)
        parts = chosen.parts
        values = dict(recipe.flat(chosen.as_dict()))
        head = f"\nThe options of {args.recipe}, with their values there:\n"
        word = "now"
    rows = [
        (key, option, values.get(key, option.default))
        for key, option in recipe.options(learner, backbone, tasks, parts).items()
    ]
    return head + option_rows(rows, word)


@command(
    "train", "tubelet train tiny --data.manifest clips.csv --learner.ratio 0.75 --out runs/first",
    argument("recipe", metavar="RECIPE", help="a YAML file, a run's folder, or a packaged name: see `tubelet list`"),
    argument("--out", type=Path, metavar="DIR", help="folder of the run (default: RECIPE, or runs/NAME)"),
    dotted=Dotted("RECIPE [--section.option VALUE ...] [--out DIR]", _recipe_help, ("--name", "--seed")),
)  # fmt: skip
def train(args: Namespace, dotted: list[str]) -> None:
    """Train what a recipe says; the same command again goes on where it stopped.

    Settings of the recipe are options: --learner.ratio 0.75. With torchrun -m tubelet train ... on several GPUs.
    """
    from tubelet.train.stop import nothing_to_save

    with nothing_to_save():
        _train(args, dotted)


def _train(args: Namespace, dotted: list[str]) -> None:
    from tubelet import chain, recipe

    path = chain.find(args.recipe)
    asked = chain.load(path, dotted) if path else recipe.load(args.recipe, dotted)
    made = Path(args.recipe)
    is_begun = any((made / file).is_file() for file in ("recipe.yaml", chain.FILE))
    out = args.out or (made if is_begun else Path("runs") / asked.name)
    if isinstance(asked, chain.Chain):
        asked.train(out)
        chosen, last = asked.preview()[-1], out / asked.links[-1].folder
    else:
        chain.train(asked, out)
        chosen, last = asked, out
    from tubelet import dist
    from tubelet.log import say

    dist.stop()
    judge = "predict {} video.mp4" if chosen.learner["name"] == "supervised" else "evaluate {} --baseline"
    if (last / "best").exists():
        say(f"{last} has the weights of the last step, {last / 'best'} those that were best by {chosen.train['best']}")
    say(f"done: {out}; next: tubelet {judge.format(last)}, tubelet report {last}")


@command(
    "show", "tubelet show presets/pretrain_small_24gb --backbone.size base",
    argument("recipe", metavar="RECIPE", help="a YAML file, a run's folder, or a packaged name"),
    argument("--no-build", action="store_true", help="only the settings: no weights counted, nothing imported"),
    dotted=Dotted("RECIPE [--section.option VALUE ...] [--no-build]", _recipe_help, ("--name", "--seed")),
)  # fmt: skip
def show(args: Namespace, dotted: list[str]) -> None:
    """Print a recipe with every setting, the number of weights and the shapes of a batch. It reads back as a recipe.

    Of a chain each run is printed, one after the other.
    """
    from tubelet import chain, recipe

    path = chain.find(args.recipe)
    runs = chain.load(path, dotted).preview() if path else [recipe.load(args.recipe, dotted)]
    for place, chosen in enumerate(runs):
        print("---\n" * (place > 0) + chosen.to_yaml(), end="")
        if not args.no_build:
            from tubelet.apply.shapes import shapes

            waits = chain.references({**chosen.learner, "init": None}).values()
            told = [f"its size is known when {', '.join(waits)} is there"] if waits else shapes(chosen)
            print("\n".join(f"# {line}" for line in told))


@command("list", "tubelet list")
def list_all(args: Namespace, _: list[str]) -> None:
    """List the learners, backbones, tasks, dataset formats and packaged recipes."""
    from tubelet import recipe

    folders = {"learners": "methods", "backbones": "backbones", "tasks": "tasks", "formats": "data/formats"}
    for title, folder in folders.items():
        print(f"{title}:")
        places = registry.catalogue(folder)
        width = max(12, *map(len, places))
        for name, place in places.items():
            summary = (registry.schema(*place).__doc__ or "").strip().splitlines()
            print(f"  {name:{width}} {summary[0] if summary else ''}")
    for folder, group in itertools.groupby(recipe.packaged(), lambda name: name.rpartition("/")[0]):
        names = list(group)
        print(f"recipes in {folder}:" if folder else "recipes:")
        width = max(12, *map(len, names))
        for name in names:
            print(f"  {name:{width}} {recipe.summary(name)}")
    _list_tables()


def _list_tables() -> None:
    from tubelet.ablate import tables

    print("ablations:")
    for table in map(tables.named, tables.names()):
        print(f"  {table.name:14} {table.title}{f' (VideoMAE, table {table.paper})' if table.paper else ''}")


def _task_help(args: Namespace | None) -> str:
    from tubelet import recipe

    lines = ["\nOptions of the tasks:"]
    for task, place in registry.catalogue("tasks").items():
        rows = [(key, option, option.default) for key, option in recipe.arguments(*place, task).items()]
        lines.append(option_rows(rows, "default"))
    return "\n".join(lines)


@command(
    "evaluate", "tubelet evaluate runs/demo --tasks knn linear --baseline --seeds 0 1 2",
    argument("run", type=Path, metavar="RUN", help="folder of a run"),
    argument("--manifest", type=storage.place, help="labelled videos (default: the run's own manifest)"),
    ROOT,
    argument("--tasks", nargs="+", metavar="TASK", help="default: knn linear; of a classifier: what it is, as it is"),
    argument("--labels-per-class", type=whole, metavar="N", help="learn from that many videos of each class"),
    argument("--seeds", nargs="+", type=whole, default=[0], metavar="N", help="repeat with each of them (default: 0)"),
    argument("--baseline", action="store_true", help="also the same network untrained; for finetune: from scratch"),
    argument("--flip", action="store_true", help="mirror training videos; not where left and right mean something"),
    argument("--one-frame", action="store_true", help="also the pixels of each clip's middle frame"),
    argument("--test-clips", type=whole, default=1, metavar="N", help="clips of each test video (default: 1)"),
    argument("--test-crops", type=whole, default=1, metavar="N", help="crops of each test clip (default: 1)"),
    argument("--workers", type=whole, default=1, metavar="N", help="processes that decode (default: 1)"),
    dotted=Dotted("RUN [options] [--task.option VALUE ...]", _task_help),
)  # fmt: skip
def evaluate(args: Namespace, dotted: list[str]) -> None:
    """Judge the encoder of a run by tasks, with confidence intervals and baselines."""
    from tubelet import recipe

    _alone("evaluate")
    asked = recipe.task_options(args.tasks or ["knn", "linear"], dotted)
    for name, value in (
        ("--labels-per-class", args.labels_per_class),
        ("--test-clips", args.test_clips),
        ("--test-crops", args.test_crops),
    ):
        if value is not None and value < 1:
            raise usage_error(f"{name} must be 1 or more, not {value}")
    made = recipe.of_run(args.run)
    from tubelet.apply import evaluate as judging
    from tubelet.checkpoint import read_about

    as_it_is = read_about(args.run).get("learner", {}).get("name") == "supervised" and not args.tasks
    told = as_it_is or made is not None or args.manifest is not None
    manifest, root = _videos(args, made) if told else (None, args.root)  # a task may have videos of its own
    terms = {"root": root, "test_clips": args.test_clips, "test_crops": args.test_crops, "workers": args.workers}
    if as_it_is:
        assert manifest is not None
        results = judging.classifier(args.run, manifest, **terms)
    else:
        results = judging.evaluate(
            args.run, asked, manifest, seeds=args.seeds, baseline=args.baseline, still=args.one_frame,
            labels_per_class=args.labels_per_class, flip=args.flip, **terms,
        )  # fmt: skip
    _print_numbers(str(args.run), results)


def _alone(name: str) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TubeletError(f"tubelet {name} runs in one process: start it without torchrun")


def _print_numbers(title: str, results: dict[str, dict[str, Any]]) -> None:
    """A table of each kind of numbers: tasks that judge alike stand in one."""
    from tubelet.log import table
    from tubelet.tasks.protocol import CLASSIFICATION, counted, in_words, numbers

    rows: dict[tuple[str, ...], list[list[str]]] = {}
    for task, variants in results.items():
        for variant, result in variants.items():
            low, high = (f"{100 * edge:.1f}" for edge in result["interval"])
            main, *others = names = numbers(result)
            shown = ["class_mean"] if names == CLASSIFICATION else others[:2]
            spread = result.get("spread")
            rows.setdefault((main, *shown), []).append([
                task, variant, f"{100 * result[main]:.1f}", f"{low} - {high}",
                *(f"{100 * result[name]:.1f}" for name in shown), counted(result),
                f"{len(result['seeds'])}: ± {100 * spread['std']:.1f}" if spread else "1",
            ])  # fmt: skip
    for (main, *shown), lines in rows.items():
        heads = [f"{in_words(main)} %", "95 % interval", *(f"{in_words(name)} %" for name in shown)]
        printed(table(title, ["task", "encoder", *heads, "videos", "seeds"], lines))


def _videos(args: Namespace, made: Any) -> tuple[storage.Place, str | None]:
    """The manifest that is asked for and its root, or those of the run."""
    if args.manifest is not None:
        return args.manifest, args.root
    if made is None:
        raise TubeletError(f"{args.run} has no recipe.yaml that names a manifest: give --manifest clips.csv")
    return storage.place(made.data["manifest"]), args.root or made.data.get("root")


@command(
    "predict", "tubelet predict runs/demo video.mp4 --top 3",
    argument("run", type=Path, metavar="RUN", help="folder of a fine-tuned run, or of one that has it within"),
    argument("video", type=storage.place, metavar="VIDEO", help=VIDEO),
    argument("--top", type=whole, default=5, metavar="N", help="classes to name (default: 5)"),
    argument("--segment-s", type=number, metavar="S", help="seconds of a segment (default: those of the clip)"),
    FPS,
    argument("--json", action="store_true", help="print JSON"),
)  # fmt: skip
def predict(args: Namespace, _: list[str]) -> None:
    """Say what a video shows: the likeliest classes, whole and segment by segment."""
    from tubelet.apply.predict import predict as classify

    found = classify(args.run, args.video, args.top, args.segment_s, args.fps)
    if args.json:
        named = [segment._asdict() for segment in (found.whole, *found.segments)]
        judged = {"weights_hash": found.weights_hash, "step": found.step}
        shown = {"video": str(args.video), **judged, "whole": named[0], "segments": named[1:]}
        print(json.dumps(shown, ensure_ascii=False))
        return
    for segment in [found.whole] if len(found.segments) == 1 else [found.whole, *found.segments]:
        title = "whole video" if segment is found.whole else "segment"
        print(f"{title} {segment.start_s:.2f} - {segment.end_s:.2f} s")
        for name, probability in segment.classes:
            print(f"  {100 * probability:5.1f} %  {name}")


@command(
    "embed", "tubelet embed runs/demo clips.csv -o feats.parquet",
    argument("run", type=Path, metavar="RUN", help="folder of a run"),
    argument("manifest", type=storage.place, metavar="MANIFEST", help="videos to encode"),
    ROOT,
    argument("-o", "--out", type=Path, required=True, metavar="FILE", help=".parquet, .csv or .npz"),
    argument("--clips", type=whole, default=1, metavar="N", help="clips along time of each video (default: 1)"),
    argument("--workers", type=whole, default=1, metavar="N", help="processes that decode (default: 1)"),
)  # fmt: skip
def embed(args: Namespace, _: list[str]) -> None:
    """Write one vector for each video of a manifest."""
    from tubelet.apply.embed import embed as encode
    from tubelet.log import say

    found = encode(args.run, args.manifest, args.out, clips=args.clips, workers=args.workers, root=args.root)
    say(f"wrote {found.readable.sum()} vectors of width {found.values.shape[1]} to {args.out}")


@command(
    "reconstruct", "tubelet reconstruct runs/demo video.mp4 -o pictures/",
    argument("run", type=Path, metavar="RUN", help="folder of a run of videomae"),
    argument("video", type=storage.place, metavar="VIDEO", help=VIDEO),
    argument("-o", "--out", type=Path, metavar="DIR", help="folder to write to (default: RUN/reconstructions)"),
    argument("--ratio", type=number, metavar="X", help="share of the cubes to hide (default: as in training)"),
    argument("--start-s", type=number, metavar="S", help="where the clip begins (default: in the middle)"),
    FPS,
    argument("--no-true-statistics", action="store_true", help="take brightness from the visible neighbours"),
    argument("--seed", type=whole, default=0, metavar="N", help="another seed hides other cubes (default: 0)"),
)  # fmt: skip
def reconstruct(args: Namespace, _: list[str]) -> None:
    """Show a video as the encoder sees it and as the decoder fills it in, as MP4 and PNG."""
    from tubelet.log import say
    from tubelet.report.reconstruct import reconstruct as fill_in

    made = fill_in(
        args.run, args.video, args.out or args.run / "reconstructions", ratio=args.ratio, start_s=args.start_s,
        true_statistics=not args.no_true_statistics, seed=args.seed, fps=args.fps,
    )  # fmt: skip
    say(f"wrote {made.mp4} and {made.png}; hidden cubes are filled in with: {made.told}")


@command("report", "tubelet report runs/demo",
         argument("run", type=Path, metavar="RUN", help="folder of a run"),
         argument("--manifest", type=storage.place,
                  help="videos to show (default: the run's own, its test split)"), ROOT)  # fmt: skip
def report(args: Namespace, _: list[str]) -> None:
    """Write the page of a run: recipe, curves, accuracies, pictures, what it cost."""
    from tubelet import recipe

    made = recipe.of_run(args.run)
    from tubelet.data.listing import read_manifest
    from tubelet.log import say, warn
    from tubelet.report.page import gather, write_report

    data = None
    try:
        manifest, root = _videos(args, made)
        data = gather(args.run, read_manifest(manifest, root=root))
    except TubeletError as error:
        if args.manifest:
            raise
        warn(f"the page has no pictures: {error}")
    say(f"wrote {write_report(args.run, data)}")


@command(
    "convert", "tubelet convert checkpoint.pth runs/published --to tubelet",
    argument("source", type=Path, metavar="SRC", help="a file, a Hugging Face folder, or a run of ours"),
    argument("out", type=Path, metavar="DST", help="folder to write; a file for original"),
    argument("--to", choices=("tubelet", "huggingface", "original"), required=True, help="what to write"),
    flag("--encoder", "encoder", "take the encoder alone"),
    flag("--segments", "segments", "its clips are a frame from each equal part of the film (Something-Something), when "
         "the file does not say"),
    flag("--ema", "ema", "take the moving average of the weights that the file has beside them"),
    flag("--allow-zero", "allow_zero", "accept tensors that are wholly zero"),
    signature("tubelet.convert.neutral", "Options"),
)  # fmt: skip
def convert(args: Namespace, _: list[str]) -> None:
    """Turn a checkpoint of VideoMAE (V1, V2, transformers, mmaction2), mae_st or an image ViT into another's.

    What SRC is comes from its tensors. It is loaded strictly, and compared where transformers is installed.
    """
    from tubelet.convert.convert import convert as change
    from tubelet.convert.neutral import Options
    from tubelet.log import say, warn

    done = change(args.source, args.out, args.to, Options(**signed(args)))
    say(f"{args.source} was taken for: {done.taken_for}")
    for note in done.notes:
        warn(note)
    for line in done.proof:
        say(line)
    say(f"wrote {args.out}")


def _ablate_help(args: Namespace | None) -> str:
    return f"{_task_help(args)}\n\nOptions of the recipe, such as --data.manifest: tubelet train RECIPE --help"


@command(
    "ablate", "tubelet ablate mask tiny --data.manifest clips.csv --seeds 0 1 2 --out runs/ablate",
    argument("table", metavar="TABLE", help="a table of the paper or one of ours; `list` shows them"),
    argument("recipe", metavar="RECIPE", nargs="?", default="tiny", help="what its rows change (default: tiny)"),
    argument("--out", type=Path, default=Path("runs/ablate"), metavar="DIR", help="default: runs/ablate"),
    argument("--seeds", nargs="+", type=whole, default=[0], metavar="N", help="of the runs (default: 0)"),
    argument("--tasks", nargs="+", metavar="TASK", default=["finetune"], help="judges (default: finetune)"),
    argument("--labels-per-class", type=whole, metavar="N", help="learn from that many videos of each class"),
    argument("--manifests", nargs="+", type=Path, metavar="FILE", default=[], help="for the tables data and transfer"),
    argument("--init", type=Path, metavar="DIR", help="also judge this encoder, untrained: a run or a converted one"),
    argument("--only", nargs="+", metavar="ROW", default=[], help="run these rows alone"),
    argument("--dry-run", action="store_true", help="only say what there is to run"),
    argument("--report", action="store_true", help="run nothing, write what there is"),
    dotted=Dotted("TABLE [RECIPE] [options] [--section.option VALUE ...] [--task.option VALUE ...]", _ablate_help,
                  ("--name", "--seed")),
)  # fmt: skip
def ablate(args: Namespace, dotted: list[str]) -> None:
    """Reproduce a table or curve of the VideoMAE paper on your videos, beside the published numbers.

    Runs that are there already are used, also those of other tables in the same folder; the same command again goes
    on where it stopped, and several such commands share the work.
    """
    if args.table == "list":
        return _list_tables()
    _alone("ablate")
    from tubelet.ablate.command import ablate as run_table

    options = {key: value for key, value in vars(args).items() if key not in ("table", "recipe")}
    return run_table(args.table, args.recipe, dotted, **options)


@command(
    "compare", "tubelet compare --data.manifest clips.csv --learners videomae moco_v3 --out runs/compare",
    argument("--out", type=Path, default=Path("runs/compare"), metavar="DIR", help="default: runs/compare"),
    argument("--learners", nargs="+", metavar="NAME", default=[],
             help="recipes in `tiny` (default: all whose modalities the videos have)"),
    argument("--clips", type=whole, default=16000, metavar="N",
             help="that each sees while it trains: every view that is loaded counts (default: 16000)"),
    argument("--seeds", nargs="+", type=whole, default=[0, 1, 2], metavar="N", help="of the runs (default: 0 1 2)"),
    argument("--tasks", nargs="+", metavar="TASK", default=["knn", "linear", "attentive", "finetune", "retrieval"],
             help="judges (default: knn linear attentive finetune retrieval)"),
    argument("--labels-per-class", type=whole, metavar="N", help="learn from that many videos of each class"),
    argument("--only", nargs="+", metavar="ROW", default=[], help="run these rows alone"),
    argument("--dry-run", action="store_true", help="only say what there is to run"),
    argument("--report", action="store_true", help="run nothing, write what there is"),
    dotted=Dotted("[options] [--section.option VALUE ...] [--task.option VALUE ...]", _ablate_help,
                  ("--name", "--seed")),
)  # fmt: skip
def compare(args: Namespace, dotted: list[str]) -> None:
    """Train methods with one backbone, corpus and budget, and judge all of them alike: one table, one figure.

    One folder is one comparison. Runs that are there already are used; the same command again goes on where it stopped,
    with more learners, seeds or tasks it adds them, and several such commands share the work.
    """
    _alone("compare")
    from tubelet.ablate.compare import compare as run_comparison

    run_comparison(dotted, **vars(args))


@command("demo", "tubelet demo --out runs/demo",
         argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="default: runs/demo"),
         signature("tubelet.demo", "main"))  # fmt: skip
def demo(args: Namespace, _: list[str]) -> None:
    """Do all of it in minutes: make videos, pre-train, judge against baselines, write the page."""
    from tubelet.demo import main as show_all

    show_all(args.out, **signed(args))


@command("doctor", "tubelet doctor")
def doctor(args: Namespace, _: list[str]) -> None:
    """Say what is installed and what this machine can do."""
    from tubelet.apply.doctor import findings

    for name, value in findings():
        print(f"{name:14} {value}")
