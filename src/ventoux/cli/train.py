"""`ventoux train demo` and `ventoux train draft`: the bundled model, and a draft for any model. An interrupted run
resumes where it was. `ventoux train mean` averages checkpoints of one training, `ventoux train plot` draws what a run
logged."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ventoux.cli.flags import parse_count
from ventoux.cli.offline import MODEL_HELP
from ventoux.cli.progress import loading_bar
from ventoux.errors import ConfigError

if TYPE_CHECKING:
    from ventoux.engine.request import Request
    from ventoux.llm import BatchItem
    from ventoux.text.tokenizer import Tokenizer

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    described = "the bundled model, from generated data"
    demo = kinds.add_parser("demo", help=described, description=described, allow_abbrev=False)
    demo.add_argument(
        "--start-from", type=Path, metavar="PATH", help="a run's state file, or a checkpoint: weights to begin with"
    )
    demo.add_argument(
        "--drill-steps", type=int, help="steps after reading that hold nothing but drills of copying and counting"
    )
    demo.add_argument("--reading-steps", type=int, help="first steps that hold nothing but drawings to read")
    demo.add_argument("--drawings-per-step", type=int, help="drawings to read beside every later step's conversations")
    described = "an EAGLE draft for a model, from the model's own answers"
    draft = kinds.add_parser("draft", help=described, description=described, allow_abbrev=False)
    draft.add_argument("model", nargs="?", help=MODEL_HELP)
    draft.add_argument("--start-from", type=Path, metavar="DIR", help="a draft's folder: weights to begin with")
    draft.add_argument(
        "--data",
        metavar="FILE",
        required=True,
        help='prompts to answer, JSON lines as for `ventoux generate --input`; "demo": the bundled model\'s own tasks',
    )
    draft.add_argument(
        "--num-prompts", type=parse_count, metavar="N", default=4096, help="prompts to use (default: %(default)s)"
    )
    draft.add_argument("--temperature", type=float, default=0.3, metavar="X", help="of the answers (default: 0.3)")
    draft.add_argument("--max-tokens", type=parse_count, default=512, metavar="N", help="of an answer (default: 512)")
    described = "curves of a run's losses and accuracies"
    plot = kinds.add_parser("plot", help=described, description=described, allow_abbrev=False)
    plot.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the log (default: %(default)s)")
    plot.add_argument("--file", type=Path, default=Path("training.svg"), help="where to draw (default: %(default)s)")
    described = "the weighted mean of checkpoints that one training went through"
    mean = kinds.add_parser("mean", help=described, description=described, allow_abbrev=False)
    mean.add_argument("models", nargs="+", type=Path, metavar="DIR", help="checkpoints of one architecture")
    mean.add_argument(
        "--shares", required=True, type=_shares, metavar="X,Y", help="of each in the mean; they add up to 1"
    )
    mean.add_argument("--export", required=True, type=Path, metavar="DIR", help="where to write it")
    for kind, out in ((demo, "runs/demo"), (draft, "runs/draft")):
        kind.add_argument(
            "--out", type=Path, default=Path(out), help="folder of the state and the log (default: %(default)s)"
        )
        kind.add_argument("--steps", type=int, help="steps in all")
        kind.add_argument("--decay-steps", type=int, help="the last steps, over which the rate falls to zero")
        kind.add_argument("--tokens-per-step", type=int, help="packed tokens per step")
        kind.add_argument("--learning-rate", type=float, help="highest rate")
        kind.add_argument("--num-threads", type=int, help="threads, each with its share of every step (default: 2)")
        kind.add_argument("--export", type=Path, metavar="DIR", help="write the result there as a checkpoint when done")


def _shares(text: str) -> list[float]:
    return [float(share) for share in text.split(",")]


def run(args: argparse.Namespace) -> int:
    if args.what == "mean":
        from ventoux.train.export import write_mean

        write_mean(args.models, args.shares, args.export)
        print(f"wrote {args.export}")
        return 0
    if args.what == "plot":
        from ventoux.train.plot import plot

        plot(args.out / "log.jsonl", args.file)
        print(f"wrote {args.file}")
        return 0
    import torch

    torch.set_num_threads(1)  # operators'; the trainers run as many of their own as asked
    (_train_demo if args.what == "demo" else _train_draft)(args)
    if args.export:
        print(f"wrote {args.export}")
    return 0


def _train_demo(args: argparse.Namespace) -> None:
    from ventoux.text.tekken import write_tekken
    from ventoux.text.tokenizer import Tokenizer
    from ventoux.train.demo import TrainConfig, Trainer
    from ventoux.train.demo_model import NUM_RANKS
    from ventoux.train.export import export

    config = _config(TrainConfig, args)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(write_tekken(args.out / "tekken.json", num_ranks=NUM_RANKS))
    trainer = Trainer(config, tokenizer, args.out)
    if trainer.run.resume():
        print(f"resumed at step {trainer.run.step} of {config.steps}", flush=True)
    elif args.start_from:
        trainer.start_from(args.start_from)
    trainer.train(_reporter(args.out))
    if args.export:
        export(trainer, args.export)


def _train_draft(args: argparse.Namespace) -> None:
    from ventoux.build import build_engine, open_draft
    from ventoux.checkpoint.files import open_checkpoint
    from ventoux.checkpoint.hub import resolve_model
    from ventoux.checkpoint.write import model_rows, write_checkpoint
    from ventoux.config import EngineConfig
    from ventoux.speculative import SpeculativeConfig
    from ventoux.text.tokenizer import Tokenizer
    from ventoux.train.draft import DraftTrainConfig, DraftTrainer, draft_config, first_draft
    from ventoux.train.record import FILE_SIZE, record

    config = _config(DraftTrainConfig, args)
    folder = resolve_model(args.model)
    target = open_checkpoint(folder).config
    start = None
    if args.start_from is not None:
        if not args.start_from.is_dir():
            raise ConfigError(f"--start-from {args.start_from}: no such folder.")
        start = open_draft(folder, SpeculativeConfig(method="eagle", model=str(args.start_from)), target)
    draft = first_draft(target, config.seed, start)
    tokenizer = Tokenizer.from_file(folder)
    requests = _requests(tokenizer, args)
    if len(requests) <= FILE_SIZE:
        raise ConfigError(f"{len(requests)} prompts are too few: the last of each {FILE_SIZE} are held out.")
    choices = EngineConfig(enable_prefix_caching=False, max_num_seqs=FILE_SIZE, speculative_config='{"method": "none"}')
    with loading_bar("loading weights") as progress:
        engine = build_engine(folder, choices, progress).engine
    recordings = args.out / "recordings"
    with loading_bar("recording answers", unit="prompts") as progress:
        for done in record(engine, requests, recordings):
            progress(done, len(requests))
    model = engine.runner.model
    del engine, model.language_model.layers  # what is left are embeddings and head: a draft reads no more of a model
    trainer = DraftTrainer(config, model, draft, sorted(recordings.glob("*.safetensors")), args.out)
    if trainer.run.resume():
        print(f"resumed at step {trainer.run.step} of {config.steps}", flush=True)
    trainer.train(_reporter(args.out))
    if args.export:
        args.export.mkdir(parents=True, exist_ok=True)
        write_checkpoint(args.export, draft_config(target), "native", model_rows(draft, draft_config(target)))


def _requests(tokenizer: Tokenizer, args: argparse.Namespace) -> list[Request]:
    from itertools import islice

    from ventoux.engine.request import Request

    items = _demo_prompts(args) if args.data == "demo" else _file_prompts(args)
    requests = []
    for i, item in enumerate(islice(items, args.num_prompts)):
        ids, images = item.prompt, []
        if isinstance(ids, str):
            ids = tokenizer.encode_text(ids, bos=True)
        elif not all(isinstance(token_id, int) for token_id in ids):
            prompt = tokenizer.encode_chat(cast(list[dict[str, Any]], ids), **item.options)
            ids, images = prompt.token_ids, prompt.images
        ids = cast(list[int], ids)
        if item.params.n != 1:
            raise ConfigError(f"--data {args.data}: n must be 1.")
        requests.append(Request(request_id=f"r{i}", prompt_token_ids=ids, params=item.params, images=images))
    return requests


def _demo_prompts(args: argparse.Namespace) -> Iterator[BatchItem]:
    from ventoux.engine.request import SamplingParams
    from ventoux.llm import BatchItem
    from ventoux.train.demo_data import DRAFT_WEIGHTS, examples

    params = SamplingParams(temperature=args.temperature, max_tokens=args.max_tokens)
    for example in examples(2**31, held_out=False, weights=DRAFT_WEIGHTS):  # a seed that no training step uses
        yield BatchItem(
            example.messages, params, {"tools": example.tools, "reasoning_effort": example.reasoning_effort}
        )


def _file_prompts(args: argparse.Namespace) -> Iterator[BatchItem]:
    from ventoux.cli.lines import read_lines

    try:
        content = Path(args.data).read_bytes()
    except OSError as error:
        raise ConfigError(f"--data {args.data}: {error.strerror}.") from error
    for line in read_lines(content.split(b"\n"), {"temperature": args.temperature, "max_tokens": args.max_tokens}):
        if line.item is None:
            raise ConfigError(f"--data {args.data}: {line.error}")
        yield line.item


def _config(kind: type[T], args: argparse.Namespace) -> T:
    """The settings that were given; the others keep their defaults."""
    given = {f.name: getattr(args, f.name, None) for f in fields(kind)}  # type: ignore[arg-type]
    config = kind(**{name: value for name, value in given.items() if value is not None})
    least = {"steps": 1, "decay_steps": 1, "num_threads": 1, "tokens_per_step": 1, "learning_rate": 0}
    least |= dict.fromkeys(("reading_steps", "drill_steps", "drawings_per_step"), 0)
    for name, value in least.items():
        if getattr(config, name, value) < value:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {value}.")
    return config


def _reporter(out: Path) -> Callable[[dict], None]:
    """Logs every record, and prints one in twenty."""
    from ventoux.train.run import log_to

    log = log_to(out / "log.jsonl")

    def report(record: dict) -> None:
        log(record)
        if record["step"] % 20 == 0 or "exact" in record or "held_out" in record:
            print(" ".join(f"{key}={value}" for key, value in record.items() if key != "experts"), flush=True)

    return report
