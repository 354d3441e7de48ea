#!/usr/bin/env python3
"""The engine beside PyTorch: the same models, tasks and sizes, in turns, as a table in Markdown.

    cargo build --release --locked
    $PYTHON tools/bench_engine/make_models.py models         # once: seeded models of full size, 0.9 GB
    PYTHON=... tools/bench_engine/compare.py models/sd-v1 models/flux --task decode,encode --size 512,1024 --rounds 3

PYTHON is a Python with torch, diffusers, safetensors and numpy (default: the one that runs this script, which itself needs
nothing); models are diffusers directories, such as make_models.py writes. On a machine with other work on it the numbers
mean little: the ratios, which are taken within a round, suffer least.

Everybody is a process of its own for each model, task and size, with the same number of threads: `latentgate bench engine`
in f32, and torch_vae.py once in each of --torch: `channels_last` and `contiguous` (PyTorch's default) in f32, and `bf16`,
which is channels_last. A process runs once, which does not count, and then --runs times; its median is its number. A round
asks everybody once, in an order by chance, and there are --rounds of them: what is printed is the median of the rounds, and
of the ratios within them. Peak is the most memory that was resident during the runs, weights, program and libraries included
(a PyTorch built for GPUs brings some 500 MiB of them); working memory is by how much that is above what was resident before.

--avx2 has both sides leave AVX-512 alone: `--instructions avx2` for the engine; ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA and
MKL_ENABLE_INSTRUCTIONS for PyTorch. Ctrl-C prints what there is so far.
"""
import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
OURS = "latentgate"
TORCH = {
    "channels_last": ["--memory-format", "channels_last", "--dtype", "f32"],
    "contiguous": ["--memory-format", "contiguous", "--dtype", "f32"],
    "bf16": ["--memory-format", "channels_last", "--dtype", "bf16"],
}
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
MEASURES = ["wall", "CPU", "peak", "working memory"]


def say(line):
    print(line, file=sys.stderr, flush=True)


def listed(choices):
    def parse(text):
        words = text.split(",")
        if unknown := sorted(set(words) - set(choices)):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: wanted of {', '.join(choices)}")
        return words

    return parse


def arguments_of(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=pathlib.Path, metavar="MODEL", help="a diffusers directory")
    parser.add_argument("--task", type=listed(["decode", "encode"]), default="decode", help="default: decode")
    parser.add_argument("--size", type=lambda text: text.split(","), default="512", help="default: 512")
    parser.add_argument("--torch", type=listed(TORCH), default=",".join(TORCH), help="default: all three")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--runs", type=int, default=2, help="of a process, after its first; default: 2")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all processors")
    parser.add_argument("--latentgate", type=pathlib.Path, default=HERE.parents[1] / "target/release/latentgate")
    parser.add_argument("--avx2", action="store_true", help="without AVX-512 on either side")
    parser.add_argument("--raw", type=pathlib.Path, help="file to which every process's JSON is appended, a line each")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1 or arguments.runs < 1 or arguments.threads < 1:
        parser.error("--rounds, --runs and --threads: at least 1")
    for model in arguments.models:
        if not (model / "config.json").is_file():
            parser.error(f"{model}: no config.json there; make_models.py writes such directories")
    if not arguments.latentgate.is_file():
        parser.error(f"{arguments.latentgate}: not there; build it (cargo build --release), or say --latentgate")
    return arguments


def command(arguments, who, model, task, size):
    common = [str(model), "--task", task, "--size", size, "--json"]
    common += ["--runs", str(arguments.runs), "--threads", str(arguments.threads)]
    if who == OURS:
        instructions = ["--instructions", "avx2"] if arguments.avx2 else []
        return [str(arguments.latentgate), "bench", "engine", *common, "--precision", "f32", *instructions]
    return [os.environ.get("PYTHON") or sys.executable, str(HERE / "torch_vae.py"), *common, *TORCH[who]]


def environment(arguments):
    """Ours, less what another configuration of latentgate says."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LATENTGATE")}
    return {**inherited, **(AVX2 if arguments.avx2 else {})}


def ask(arguments, who, cell):
    """What one process measured."""
    argv = command(arguments, who, *cell)
    done = subprocess.run(argv, env=environment(arguments), capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(argv)} failed:\n{done.stderr}")
    found = json.loads(done.stdout)
    if found["memory_peak_of"] != "size":
        say(f"{who}: the peak of memory is that of the whole process, loading included")
    if arguments.raw:
        with arguments.raw.open("a") as raw:
            raw.write(json.dumps({"who": who, "avx2": arguments.avx2, **found}) + "\n")
    return found


def rounds(arguments, results):
    """Everybody in turns. `results` is filled as they answer: a list for each cell, with what a round found in it."""
    cells = [(model, task, size) for model in arguments.models for task in arguments.task for size in arguments.size]
    everybody = [OURS, *arguments.torch]
    chance = random.Random(1)
    began, done, total = time.monotonic(), 0, len(cells) * len(everybody) * arguments.rounds
    for number in range(1, arguments.rounds + 1):
        for cell in cells:
            found = {}
            for who in chance.sample(everybody, len(everybody)):
                found[who] = ask(arguments, who, cell)
                done += 1
                left = (time.monotonic() - began) / done * (total - done) / 60
                name, task, size = cell[0].name, *cell[1:]
                wall = found[who]["wall_median_seconds"]
                say(f"round {number} of {arguments.rounds}, {name} {task} {size}, {who}: {wall:.3f} s; {left:.0f} min to go")
            results.setdefault(cell, []).append(found)


def value(found, measure):
    """What a process found; none where the system does not tell."""
    before, peak = found["memory_before_bytes"], found["memory_peak_bytes"]
    if measure == "working memory":
        return None if None in (before, peak) else peak - before
    return {"wall": found["wall_median_seconds"], "CPU": found["cpu_median_seconds"], "peak": peak}[measure]


def middle(found, who, measure):
    """The median of the rounds."""
    values = [value(round_[who], measure) for round_ in found]
    return None if None in values else statistics.median(values)


def ratio(found, who, measure):
    """Ours as a multiple of theirs: the median of the ratios within rounds."""
    pairs = [(value(round_[OURS], measure), value(round_[who], measure)) for round_ in found]
    if any(ours is None or not theirs for ours, theirs in pairs):
        return None
    return statistics.median(ours / theirs for ours, theirs in pairs)


def shown(value, measure):
    if value is None:
        return "unknown"
    return f"{value:.3f} s" if measure in ("wall", "CPU") else f"{value / 2**20:.0f} MiB"


def table(results):
    """A row for each cell and each way of PyTorch's; of each measure both sides and the ratio."""
    head = ["model", "task", "size", "PyTorch as"]
    for measure in MEASURES:
        head += [f"{measure}: latentgate, PyTorch", "ratio"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for (model, task, size), found in results.items():
        for who in (who for who in TORCH if who in found[0]):
            cells = [model.name, task, size, who]
            for measure in MEASURES:
                times = ratio(found, who, measure)
                cells.append(", ".join(shown(middle(found, side, measure), measure) for side in (OURS, who)))
                cells.append("unknown" if times is None else f"{times:.2f}")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def heading(arguments, results):
    """On what, with what."""
    first = next(iter(results.values()))[0]
    ours, theirs = first[OURS], next(found for who, found in first.items() if who != OURS)
    least = min(len(found) for found in results.values())
    return [
        f"{ours['processor']}, {ours['threads']} threads on {ours['processors']} processors: {' '.join(ours['cpu_features'])}",
        f"latentgate {ours['version']}; {theirs['version']}, {theirs['cpu_capability']}"
        + ("; AVX-512 switched off on both sides" if arguments.avx2 else ""),
        f"rounds: {least}; runs of a process after its first: {arguments.runs}; medians, of the ratios (latentgate / PyTorch) "
        "within rounds: below 1 latentgate needs less",
    ]


def main(argv=None):
    arguments = arguments_of(argv)
    results = {}
    try:
        rounds(arguments, results)
    except KeyboardInterrupt:
        say("stopped: what there is so far")
    if not results:
        sys.exit("nothing was measured to its end")
    for line in [*heading(arguments, results), "", *table(results)]:
        print(line)


if __name__ == "__main__":
    main()
