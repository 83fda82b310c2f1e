"""The commands `tubelet data ...`. Like those of `cli.py` they import what they need themselves."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path

from tubelet import registry
from tubelet.command import (
    ROOT,
    Dotted,
    argument,
    choices,
    chosen,
    command,
    flag,
    number,
    printed,
    rate,
    signature,
    signed,
    usage_error,
    whole,
)
from tubelet.data import storage
from tubelet.types import TubeletError


@command(
    "data scan", "tubelet data scan videos/ -o clips.csv",
    argument("folder", type=Path, help="a tree of video files (folders in it are labels), or a `path label` list"),
    argument("-o", "--out", type=Path, default=Path("clips.csv"), help="manifest to write (default: clips.csv)"),
    argument("--workers", type=whole, help="processes (default: one per core)"),
    argument("--limit-s", type=number, default=60.0, metavar="S",
             help="seconds that a file may take, beyond what its size explains (default: 60)"),
    ROOT,
)  # fmt: skip
def data_scan(args: Namespace, _: list[str]) -> None:
    """List the videos of a folder in a manifest, and say what they are like."""
    from tubelet.data.inspect import scan as look_over
    from tubelet.data.inspect import write_unreadable
    from tubelet.data.listing import write_manifest
    from tubelet.log import say, table, warn

    quarantine = args.out.with_name(f"{args.out.stem}-unreadable.csv")
    if quarantine.exists() and quarantine.samefile(args.folder):
        raise TubeletError(f"{args.folder} would be written over: give the manifest another name with -o")
    scan = look_over(args.folder, args.workers, args.limit_s, args.root)
    for path, reason in scan.unreadable[:5]:
        warn(f"{path} cannot be read: {reason}")
    if scan.unreadable:
        write_unreadable(quarantine, scan.unreadable)
        warn(f"{len(scan.unreadable):,} files or spans cannot be read: left out, and listed in {quarantine}")
    write_manifest(args.out, scan.manifest)
    printed(table(str(args.folder), ["", ""], [list(row) for row in scan.summary()]))
    say(f"wrote {args.out}; next: tubelet train tiny --data.manifest {args.out}")


def _recipe_options(_: Namespace | None) -> str:
    return "\nWith --recipe also the options of the recipe, such as --backbone.init: tubelet train RECIPE --help"


@command(
    "data check", "tubelet data check videos/ -o clips.csv --recipe tiny",
    argument("source", type=Path, metavar="SOURCE", help="a tree of videos, a manifest, or a `path label` list"),
    argument("-o", "--out", type=Path, help="clean manifest (default: clips.csv, or NAME-clean.csv for NAME.csv)"),
    argument("--recipe", metavar="RECIPE", help="also say what this recipe will cost here, and what binds"),
    argument("--workers", type=whole, help="processes (default: one per core)"),
    argument("--limit-s", type=number, default=60.0, metavar="S",
             help="seconds that a file may take, beyond what its size explains (default: 60)"),
    ROOT,
    argument("--drop-duplicates", choices=("exact", "near"),
             help="leave out copies: those of the same bytes, or those that look the same too (default: they stay)"),
    argument("--drop-leaks", action="store_true",
             help="leave out of training what shares its group with what is judged on (default: it stays)"),
    dotted=Dotted("SOURCE [-o CSV] [--recipe RECIPE] [options]", _recipe_options, ("--seed",)),
)  # fmt: skip
def data_check(args: Namespace, dotted: list[str]) -> None:
    """Decode every file, leave out the bad ones with their reasons, and find copies, leaks and oddities.

    Writes a clean manifest, a list of what was left out, a JSON with everything and a page to look at. The same command
    again goes on where it was stopped, and looks only at what is new.
    """
    from tubelet import recipe

    if dotted and not args.recipe:
        raise usage_error(f"{dotted[0]} is an option of a recipe: name it with --recipe")
    if args.recipe:
        recipe.load(args.recipe, [*dotted, "--data.manifest", "clips.csv"]).needs()  # before the long work
    from tubelet.data.check import check, write_json
    from tubelet.log import say, table, warn
    from tubelet.report.check import write_page

    found = check(
        args.source, args.out, workers=args.workers, limit_s=args.limit_s, root=args.root,
        drop_duplicates=args.drop_duplicates, drop_leaks=args.drop_leaks,
    )  # fmt: skip
    cost = None
    if args.recipe and len(found.clean):
        from tubelet.apply.cost import estimate

        say(f"trying {args.recipe} for a few seconds")
        words = [*dotted, "--data.manifest", str(found.out.manifest)]
        cost = estimate(recipe.load(args.recipe, words + (["--data.root", args.root] if args.root else [])))
    rows = cost.rows() if cost else []
    write_json(found, recipe=args.recipe, cost=cost and cost.as_json())
    told = f"{args.recipe} {cost.sentence}" if cost else ""
    page = write_page(found, rows, told, ["tubelet", *sys.argv[1:]])
    printed(table(str(args.source), ["", ""], [list(row) for row in [*found.summary(), *rows]]))
    say(f"wrote {page}, {found.out.json} and {found.out.quarantine}")
    if not len(found.clean):
        first = found.left_out[0]
        raise TubeletError(
            f"none of the {len(found.manifest):,} rows of {args.source} can be used; {first.path.name}: {first.reason}"
        )
    if found.left_out:
        warn(f"{len(found.left_out):,} of {len(found.manifest):,} rows are left out of {found.out.manifest}")
    say(f"wrote {found.out.manifest}; next: tubelet train tiny --data.manifest {found.out.manifest}")


@command(
    "data import", "tubelet data import ucf101 --annotations ucfTrainTestlist/ --videos UCF-101/ -o ucf101.csv",
    argument("--annotations", metavar="DIR", required=True, help="folder of the official lists"),
    argument("--videos", type=Path, metavar="DIR", required=True,
             help="folder that the videos are in, at any depth; where a video has no file, a folder of pictures of its "
             "name is taken"),
    argument("--fps", type=rate, metavar="X",
             help="pictures a second in those folders (default: the data set's own, or 30)"),
    argument("-o", "--out", type=Path, default=Path("clips.csv"), help="manifest to write (default: clips.csv)"),
    argument("--splits", nargs="+", metavar="SPLIT", help="only these splits, such as train val (default: all)"),
    argument("--keep-missing", action="store_true", help="list the videos that are not there too"),
    argument("--per-class", action="store_true", help="print the number of videos of each class"),
    choices("data/formats"),
)  # fmt: skip
def data_import(args: Namespace, _: list[str]) -> None:
    """Make a manifest of a published data set from its official lists and the videos that are there."""
    from tubelet.data.inspect import write_unreadable
    from tubelet.data.listing import write_manifest
    from tubelet.data.official import gather
    from tubelet.log import say, table, warn

    if args.out.exists() and args.out.resolve().is_relative_to(Path(args.annotations).resolve()):
        raise TubeletError(f"{args.out} is one of the official lists: write the manifest elsewhere with -o")
    options = chosen("data/formats", args)
    official = registry.build("data/formats", args.choice, annotations=args.annotations, **options)
    found = gather(official.only(args.splits) if args.splits else official, args.videos, args.keep_missing, args.fps)
    write_manifest(args.out, found.manifest)
    list_of_missing = args.out.with_name(f"{args.out.stem}-missing.csv")
    list_of_missing.unlink(missing_ok=True)
    if found.missing:
        write_unreadable(list_of_missing, found.missing)
        kept = "kept in the manifest all the same" if args.keep_missing else "left out"
        warn(f"{len(found.missing):,} listed videos are missing: {kept}, and listed in {list_of_missing}")
    for columns, rows in [found.by_split(), *([found.by_class()] if args.per_class else [])]:
        printed(table(args.choice, columns, rows))
    printed(table(str(args.videos), ["", ""], [list(row) for row in found.summary()]))
    say(f"wrote {args.out}; next: tubelet data check {args.out} looks whether each video can be read")


@command(
    "data pack", "tubelet data pack clips.csv packed/",
    argument("manifest", nargs="?", help="the videos to pack: a manifest or a `path label` list"),
    argument("out", nargs="?", help="folder to write, here or on object storage (s3://bucket/packed)"),
    signature("tubelet.data.packing", "Packing"),
    argument("--workers", type=whole, help="processes (default: one per core)"),
    argument("--limit-s", type=number, default=600.0,
             help="give a video up after so many seconds (default: 600; in proportion more for files over 100 MB)"),
    ROOT,
    argument("--verify", metavar="OUT", help="only compare every checksum of a pack"),
)  # fmt: skip
def data_pack(args: Namespace, _: list[str]) -> None:
    """Decode videos once, and rewrite them into shards from which clips are read many times faster.

    Shards are tars of the WebDataset convention. A manifest of the packed videos is written beside them, to be used
    like the first one. The same command goes on where it was ended: shards of the right size are taken to be whole
    (--verify compares their checksums), those of sources that have changed are made again.
    """
    from tubelet.data.listing import read_manifest
    from tubelet.data.pack import Packing, pack
    from tubelet.data.storage import place
    from tubelet.data.verify import verify
    from tubelet.log import say, table, warn

    if args.verify is not None:
        whole_ones, damaged = verify(place(args.verify), args.workers)
        for where, reason in damaged:
            warn(f"{where}: {reason}")
        if damaged:
            raise TubeletError(
                f"{args.verify} is damaged in {len(damaged):,} places; {whole_ones:,} samples are whole: delete the "
                "shard-N.index of those shards and run the command that packed them again"
            )
        say(f"all {whole_ones:,} samples of {args.verify} are whole")
        return
    if args.manifest is None or args.out is None:
        raise usage_error("needs a manifest and a folder to write: tubelet data pack clips.csv packed/")
    manifest = read_manifest(args.manifest, root=args.root)
    packed = pack(manifest, place(args.out), Packing(**signed(args)), args.workers, args.limit_s)
    for path, reason in packed.left_out[:5]:
        warn(f"{path} is left out: {reason}")
    if packed.left_out:
        warn(f"{len(packed.left_out):,} videos are left out and listed in {place(args.out) / 'unreadable.csv'}")
    printed(table(args.out, ["", ""], [list(row) for row in packed.summary()]))
    say(f"wrote {packed.manifest}; next: tubelet train tiny --data.manifest {packed.manifest}")


@command(
    "data flow", "tubelet data flow clips.csv --out flow/",
    argument("manifest", metavar="MANIFEST", help="the videos: a manifest or a `path label` list"),
    argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder to write"),
    signature("tubelet.data.flow", "Flow"),
    argument("--workers", type=whole, help="processes (default: one per core)"),
    argument("--limit-s", type=number, default=600.0, metavar="S",
             help="give a video up after so many seconds (default: 600), beyond what its size explains"),
    ROOT,
)  # fmt: skip
def data_flow(args: Namespace, _: list[str]) -> None:
    """Compute the optical flow of videos once, as films that are read beside them or instead of them.

    Writes a film for each video, and a manifest that names them. The same command again goes on where it was stopped.
    """
    from tubelet.data.flow import Flow, make_films
    from tubelet.data.listing import read_manifest
    from tubelet.log import say, table, warn

    manifest = read_manifest(args.manifest, root=args.root)
    filmed = make_films(manifest, args.out, Flow(**signed(args)), args.workers, args.limit_s)
    for path, reason in filmed.left_out[:5]:
        warn(f"{path} is left out: {reason}")
    if filmed.left_out:
        warn(f"{len(filmed.left_out):,} videos are left out and listed in {args.out / 'unreadable.csv'}")
    printed(table(str(args.out), ["", ""], [list(row) for row in filmed.summary()]))
    say(f"wrote {filmed.manifest}; next: tubelet train tiny --data.manifest {filmed.manifest} --data.flow instead")


@command(
    "data join", "tubelet data join k400.csv ssv2.csv -o mix.csv",
    argument("manifests", nargs="+", type=storage.place, metavar="MANIFEST", help="manifests, each a corpus"),
    argument("-o", "--out", type=Path, required=True, help="manifest to write"),
    ROOT,
    argument("--no-labels", action="store_true", help="leave labels out: for pre-training alone"),
)  # fmt: skip
def data_join(args: Namespace, _: list[str]) -> None:
    """Make one manifest of several corpora, with a column `corpus`, by which `data.weights` draws from them."""
    from tubelet.data.listing import read_manifest, write_manifest
    from tubelet.data.mixture import join
    from tubelet.log import say, table, warn

    manifests = [read_manifest(path, root=args.root) for path in args.manifests]
    mixture = join(manifests, labels=not args.no_labels)
    for manifest in manifests if mixture.splits else []:
        if not manifest.splits:
            warn(f"{manifest.source} has no splits: all its videos are for training")
    write_manifest(args.out, mixture)
    counts = Counter(str(video.corpus) for video in mixture)
    printed(table(str(args.out), ["corpus", "videos"], [[name, f"{count:,}"] for name, count in counts.items()]))
    say(f"wrote {args.out}, {len(mixture.classes):,} classes; next: tubelet train tiny --data.manifest {args.out}")


@command(
    "data synth", "tubelet data synth corpus/ --clips 2000",
    argument("out", type=Path, help="folder to write"),
    flag("--sound", "sound", "the files have a track of sound that tells the motion"),
    signature("tubelet.data.synthetic", "make_corpus"),
    signature("tubelet.data.synthetic", "Corpus"),
)  # fmt: skip
def data_synth(args: Namespace, _: list[str]) -> None:
    """Render a corpus of moving shapes as mp4 files, whose class is the motion."""
    from tubelet.data.synthetic import make_corpus
    from tubelet.log import say

    say(f"wrote {make_corpus(args.out, **signed(args))}")
