"""docs/gallery: the headline table as a picture, and a report page of real networks, from the zoo's results and artifacts.

    python benchmarks/gallery.py ZOO ROBOTS -o docs/gallery --work FOLDER [--model MODEL_DIR --quantized FOLDER --text TEXT]

Artifacts lie in --work and are made only where they are missing there (about two CPU minutes in all); pages are made each time.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from fewbit.report.gallery import Entry, gallery

RESULTS = Path(__file__).parent / "results" / "policies.jsonl"
FEWBIT = [sys.executable, "-c", "from fewbit.cli.main import main; main()"]
G1 = ["robots:UnitreeG1-v0", "--weights", "int4", "--episodes", "20", "--trust-torchscript"]
FEW = ["--weights", "int2", "--method", "qat", "--train-steps", "1500", "--episodes", "20"]
# name: (source, what `fewbit quantize --env` gets)
ARTIFACTS = {
    "g1-int4-rtn": ("ROBOTS/g1/motion.pt", [*G1, "--method", "rtn"]),
    "g1-int4": ("ROBOTS/g1/motion.pt", [*G1, "--method", "smooth+gptq"]),
    "halfcheetah-int8": ("ZOO/sac/HalfCheetah-v3/HalfCheetah-v3.zip", ["HalfCheetah-v5", "--keep", "0.99"]),
    "cartpole-int8": ("ZOO/dqn/CartPole-v1/CartPole-v1.zip", ["CartPole-v1"]),
    "cartpole-int2": ("ZOO/dqn/CartPole-v1/CartPole-v1.zip", ["CartPole-v1", *FEW]),
    "pendulum-int8": ("ZOO/sac/Pendulum-v1/Pendulum-v1.zip", ["Pendulum-v1"]),
    "pendulum-int2": ("ZOO/sac/Pendulum-v1/Pendulum-v1.zip", ["Pendulum-v1", *FEW]),
}
# artifact: (what the gallery says, further options of `fewbit report`)
PAGES = {
    "g1-int4": ("Unitree G1 humanoid: float32, int4 rounded to nearest, our int4",
                ["--film", "--beside", "g1-int4-rtn.onnx", "--trust-torchscript", "--env", G1[0], "--film-seconds", "6"]),
    "halfcheetah-int8": ("HalfCheetah, SAC: the search, and the common tools beside it",
                         ["--peers", str(RESULTS.resolve()), "--agent", "sac/HalfCheetah-v3"]),
    "cartpole-int8": ("CartPole, DQN, to play: float32, int8, int2", ["--beside", "cartpole-int2.onnx"]),
    "pendulum-int8": ("Pendulum, SAC, to play: float32, int8, int2", ["--beside", "pendulum-int2.onnx"]),
}  # fmt: skip


def fewbit(args: list[str], folder: Path, robots: Path) -> None:
    """Run a verb; one that tried and did not reach its goal (exit 1) has still written what it made."""
    paths = os.pathsep.join([str(robots), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([*FEWBIT, *args], cwd=folder, env=os.environ | {"PYTHONPATH": paths})
    if done.returncode not in (0, 1):
        sys.exit(f"fewbit {' '.join(args)}: exit {done.returncode}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("zoo", "robots"):
        parser.add_argument(name, type=Path)
    for option in ("-o", "--work"):
        parser.add_argument(option, type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="make these artifacts and stop")
    for option in ("--model", "--quantized", "--text"):
        parser.add_argument(option, type=Path)
    given = parser.parse_args()
    work, out, robots = given.work.resolve(), given.o.resolve(), given.robots.resolve()
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    places = {"ZOO": str(given.zoo.resolve()), "ROBOTS": str(robots)}
    sources = {n: s.replace(s.split("/")[0], places[s.split("/")[0]], 1) for n, (s, _) in ARTIFACTS.items()}
    for name in given.only or ARTIFACTS:
        if not (work / f"{name}.onnx").exists():
            fewbit(["quantize", sources[name], "-o", f"{name}.onnx", "--env", *ARTIFACTS[name][1]], work, robots)
    if given.only:
        return
    entries = []
    for name, (what, options) in PAGES.items():
        fewbit(["report", f"{name}.onnx", "-o", str(out / f"{name}.html"), "--against", sources[name], *options], work, robots)
        entries.append(Entry(f"{name}.html", what, work / f"{name}.onnx"))
    if given.model:
        options = ["--against", str(given.model.resolve()), "--text", str(given.text.resolve())]
        fewbit(["report", str(given.quantized.resolve()), "-o", str(out / "language.html"), *options], work, robots)
        entries.append(Entry("language.html", "A language model at 4 bits, block by block", None))
    gallery(RESULTS, entries, out)


if __name__ == "__main__":
    main()
