"""`ventoux train demo`: train the bundled model from generated data; an interrupted run resumes where it was."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from ventoux.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("demo",), help="what to train")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the state and the log")
    parser.add_argument("--steps", type=int, help="steps in all")
    parser.add_argument("--decay-steps", type=int, help="the last steps, over which the rate falls to zero")
    parser.add_argument("--tokens-per-step", type=int, help="packed tokens per step")
    parser.add_argument("--learning-rate", type=float, help="highest rate")
    parser.add_argument("--num-threads", type=int, help="threads, each with its share of every step (default: 2)")
    parser.add_argument("--export", type=Path, metavar="DIR", help="write the model there as a checkpoint when done")


def run(args: argparse.Namespace) -> int:
    import torch

    from ventoux.text.tekken import write_tekken
    from ventoux.text.tokenizer import Tokenizer
    from ventoux.train.demo import TrainConfig, Trainer, log_to
    from ventoux.train.demo_model import NUM_RANKS
    from ventoux.train.export import export

    torch.set_num_threads(1)  # operators'; the trainer runs as many of its own as asked
    given = {f.name: getattr(args, f.name, None) for f in fields(TrainConfig)}
    config = TrainConfig(**{name: value for name, value in given.items() if value is not None})
    if min(config.steps, config.decay_steps, config.num_threads) < 1:
        raise ConfigError("--steps, --decay-steps and --num-threads must be at least 1.")
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(write_tekken(args.out / "tekken.json", num_ranks=NUM_RANKS))
    trainer = Trainer(config, tokenizer, args.out)
    if trainer.resume():
        print(f"resumed at step {trainer.step} of {config.steps}", flush=True)
    log = log_to(args.out / "log.jsonl")

    def report(record: dict) -> None:
        log(record)
        if record["step"] % 20 == 0 or "exact" in record:
            print(" ".join(f"{key}={value}" for key, value in record.items()), flush=True)

    trainer.train(report)
    if args.export:
        export(trainer, args.export)
        print(f"wrote {args.export}")
    return 0
