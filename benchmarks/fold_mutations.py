"""Is every check of the folds tested? Each is dropped or turned around, one at a time, and the tests must notice.

    python benchmarks/fold_mutations.py [--graphs 200] [--only fold_affine] [--no-tests]

A mutant drops one condition of an and/or, a guard or a `not`, turns a comparison, or changes a constant, + or -. It is caught
where a random network (tests/random_graphs), read and folded, crashes or gives other outputs than before it was folded, or where
one of tests/test_fold*.py fails. Every mutant is a forked process, so that nothing of it remains.
"""

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import numpy as np  # noqa: E402
import onnx  # noqa: E402
from random_graphs.oracle import Oracle, Sample  # noqa: E402
from random_graphs.sample import sample  # noqa: E402

FOLDS = ROOT / "src" / "fewbit" / "graph"
TURNED = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.Add: ast.Sub, ast.Sub: ast.Add,
}  # fmt: skip
ALIVE, BY_GRAPHS, BY_TESTS, LATE = "alive", "random networks", "tests", "took too long"
CODES = [ALIVE, BY_GRAPHS, BY_TESTS]


def mutants(source: str) -> Iterator[tuple[int, str, str]]:
    """(line, what was changed, the changed source) of every mutant of a module."""
    tree = ast.parse(source)
    for k, node in enumerate(ast.walk(tree)):
        for what, change in _changes(node):
            made = copy.deepcopy(tree)
            target = next(n for i, n in enumerate(ast.walk(made)) if i == k)
            change(target)
            text = ast.get_source_segment(source, node) or ""
            yield node.lineno, f"{what}: {' '.join(text.split())[:150]}", ast.unparse(ast.fix_missing_locations(made))


def _changes(node: ast.AST) -> Iterator[tuple[str, object]]:
    if isinstance(node, ast.BoolOp):
        for i, value in enumerate(node.values):
            yield f"without `{ast.unparse(value)[:60]}`", lambda n, i=i: n.values.pop(i)
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in TURNED and not _on_none(node):
        yield "turned", lambda n: n.ops.__setitem__(0, TURNED[type(n.ops[0])]())
    elif isinstance(node, ast.BinOp) and type(node.op) in TURNED:
        yield "sign", lambda n: setattr(n, "op", TURNED[type(n.op)]())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "without not", _keep_operand
    elif isinstance(node, ast.Constant) and type(node.value) in (int, bool):
        yield "constant", lambda n: setattr(n, "value", _other(n.value))
    elif isinstance(node, ast.If) and not node.orelse and isinstance(node.body[-1], ast.Return | ast.Continue | ast.Raise):
        yield "guard dropped", lambda n: setattr(n, "test", ast.Constant(False))


def _on_none(node: ast.Compare) -> bool:
    """What a type checker holds."""
    return isinstance(node.comparators[0], ast.Constant) and node.comparators[0].value is None


def _other(value: int | bool) -> int | bool:
    return not value if isinstance(value, bool) else {0: 1, 1: 0}.get(value, value + 1)


def _keep_operand(node: ast.UnaryOp) -> None:
    """`not x` becomes `not not x`: the truth of x."""
    node.operand = ast.UnaryOp(ast.Not(), node.operand)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module from changed source."""

    def __init__(self, name: str, source: str):
        self.name, self.source = name, source

    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_loader(name, self) if name == self.name else None

    def exec_module(self, module) -> None:
        exec(compile(self.source, f"<mutant of {self.name}>", "exec"), module.__dict__)


def fates(stem: str, source: str, cases: list[tuple[Sample, dict, list]], tests: list[str], seconds: float) -> str:
    """Run one mutant in a forked process."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        sys.meta_path.insert(0, _Finder(f"fewbit.graph.{stem}", source))
        code = 1
        try:
            code = 0 if all(unchanged(*c) for c in cases) else 1
            if code == 0 and tests:
                import pytest

                code = 2 if pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]) else 0
        finally:
            os._exit(code)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return CODES[code] if 0 <= code < len(CODES) else BY_GRAPHS
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return LATE


def unchanged(made: Sample, feeds: dict[str, np.ndarray], want: list[np.ndarray]) -> bool:
    """Does the network, read and folded, still give what it gave? Refusing what was taken before is a change too."""
    import onnx_ir as ir

    from fewbit.graph.fold import fold
    from fewbit.graph.read import prepare

    proto = onnx.ModelProto()
    proto.CopyFrom(made.model)
    folded = ir.to_proto(fold(prepare(proto)))
    if [o.name for o in folded.graph.output][: len(want)] != [o.name for o in made.model.graph.output] and not made.states:
        return False
    takes = {v.name: v for v in folded.graph.input}
    if not made.states and set(takes) - {t.name for t in folded.graph.initializer} != set(feeds):
        return False
    given = {k: v.reshape(_like(v, takes[k])) for k, v in feeds.items() if k in takes}
    got = Oracle(folded)(given)
    return all(_same(a, b) for a, b in zip(want, got, strict=False))


def _like(array: np.ndarray, value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """A state loses its axis of layers."""
    rank = len(value.type.tensor_type.shape.dim)
    return array.shape if array.ndim == rank else array.shape[1:]


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    if a.size != b.size:
        return False
    a, b = a.reshape(-1).astype(np.float64), b.reshape(-1).astype(np.float64)
    return bool(np.abs(a - b).max(initial=0) <= 1e-3 * max(1.0, np.abs(a).max(initial=0)))


def chosen(count: int) -> list[tuple[Sample, dict, list]]:
    """Networks that the folds as they are take and leave right, with rows and what they give."""
    cases, seed, rng = [], 0, np.random.default_rng(0)
    while len(cases) < count:
        made, seed = sample(seed), seed + 1
        feeds = {k: v[:5] for k, v in made.feeds.items()}
        if made.baked:
            feeds = {k: v[:1] for k, v in feeds.items()}
        for v in made.model.graph.input:
            if v.name in made.states:
                dims = [d.dim_value or len(next(iter(feeds.values()))) for d in v.type.tensor_type.shape.dim]
                feeds[v.name] = rng.normal(size=dims).astype(np.float32)
        case = (made, feeds, Oracle(made.model)(feeds))
        if _passes(case):
            cases.append(case)
    return cases


def _passes(case: tuple[Sample, dict, list]) -> bool:
    """In a process of its own: the modules must not be loaded here."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if unchanged(*case) else 1
        finally:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=200)
    parser.add_argument("--only", help="one module: fold_affine, say")
    parser.add_argument("--no-tests", action="store_true", help="random networks alone")
    parser.add_argument("--seconds", type=float, default=60, help="longest run of one mutant")
    args = parser.parse_args()
    tests = [] if args.no_tests else [str(p) for p in sorted((ROOT / "tests").glob("test_fold*.py"))]
    cases = chosen(args.graphs)
    if fates("fold", (FOLDS / "fold.py").read_text(), [], tests, 10 * args.seconds) != ALIVE:
        sys.exit("the tests of the folds fail without a mutant; mend them first, or ask the random networks alone: --no-tests")
    tally: Counter = Counter()
    for path in sorted(FOLDS.glob("fold*.py")):
        if args.only not in (None, path.stem):
            continue
        for line, what, source in mutants(path.read_text()):
            fate = fates(path.stem, source, cases, tests, args.seconds)
            tally[fate] += 1
            if fate == ALIVE:
                print(f"{path.name}:{line}: {what}", flush=True)
    print(", ".join(f"{n} {fate}" for fate, n in tally.items()))
    sys.exit(1 if tally[ALIVE] else 0)


if __name__ == "__main__":
    main()
