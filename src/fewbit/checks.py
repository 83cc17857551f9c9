"""Checks of a scheme and of what is asked beside it, before any work: the unknown, the contradictory, what would do nothing."""

from collections import Counter
from importlib.util import find_spec

from fewbit import solvers, targets
from fewbit.errors import FewbitError, MissingExtra
from fewbit.graph import half, qdq
from fewbit.numerics.formats import INTEGERS
from fewbit.numerics.ranges import RANGES

WEIGHTS = ("int8", "int6", "int4", "int3", "int2", "ternary", "int16", *half.DTYPES, "auto")
LAYER = tuple(name for name in WEIGHTS if name in INTEGERS)  # formats of one layer's weights
MOST_EPISODES, MOST_SEED = 1_000_000, 1 << 31
PLAIN = qdq.Scheme()


def check(scheme: qdq.Scheme, budget: int | None = None) -> None:
    """Refuse a scheme that cannot be meant.

    Args:
        scheme: what is asked for.
        budget: bytes of weights, or None.

    Raises:
        FewbitError: a name is not known, two options contradict each other, or one would be ignored.
    """
    if not isinstance(scheme, qdq.Scheme):
        raise FewbitError(f'scheme: a {type(scheme).__name__}; give fewbit.Scheme(weights="int4"), say')
    _known(scheme)
    if scheme.method == "dynamic":
        _dynamic(scheme, budget)
    if scheme.weights in half.DTYPES:
        _cast(scheme, budget)
    if scheme.weights == "auto" and scheme.method != "auto":
        raise FewbitError(f"--weights auto is a search, which chooses the method too; leave out --method {scheme.method}")
    if scheme.method == "qat" and find_spec("torch") is None:
        raise MissingExtra("torch", "torch")
    if scheme.method == "qat" and scheme.target in qdq.SATURATING:
        raise FewbitError(f"--method qat does not keep weights within 16 bits two by two, as --target {scheme.target} asks")
    if budget is not None and scheme.weights not in (PLAIN.weights, "auto"):
        raise FewbitError(f"--budget chooses int4 to int16 layer by layer; leave out --weights {scheme.weights}")
    if scheme.layers and (scheme.method == "auto" or budget is not None):
        raise FewbitError("--layer belongs to a pinned --method without --budget; what chooses formats itself would overrule it")
    if twice := [name for name, count in Counter(name for name, _ in scheme.layers).items() if count > 1]:
        raise FewbitError(f"--layer {twice[0]}: is given more than once; give each layer one format")


def _known(scheme: qdq.Scheme) -> None:
    if scheme.method not in ("dynamic", "auto", "qat"):
        solvers.method(scheme.method)
    for option, name, allowed in (
        ("--weights", scheme.weights, WEIGHTS),
        ("--activations", scheme.activations, ("uint8", "int8", "uint16", "int16")),
        ("--inputs", scheme.inputs, ("int16", "int8")),
        ("--ranges", scheme.ranges, tuple(RANGES)),
        ("--target", scheme.target, ("any", *targets.RUNTIMES)),
    ):
        if name not in allowed:
            raise FewbitError(f"{option} {name} is not supported; choose one of {', '.join(allowed)}")


def _given(scheme: qdq.Scheme, budget: int | None) -> list[str]:
    """Options about integers that differ from their defaults, as they are written."""
    names = [k for k in ("activations", "inputs", "ranges") if getattr(scheme, k) != getattr(PLAIN, k)]
    fields = [f"--{k} {getattr(scheme, k)}" for k in names]
    layers = [f"--layer {name}={fmt}" for name, fmt in scheme.layers]
    return [*fields, *layers, *([] if budget is None else [f"--budget {budget}"])]


def _dynamic(scheme: qdq.Scheme, budget: int | None) -> None:
    given = _given(scheme, budget)
    given += [f"--weights {scheme.weights}"] * (scheme.weights != PLAIN.weights)
    given += [f"--target {scheme.target}"] * (scheme.target != PLAIN.target)
    if given:
        raise FewbitError(f"--method dynamic has int8 weights and uint8 activations, measured at run time; leave out {given[0]}")


def _cast(scheme: qdq.Scheme, budget: int | None) -> None:
    if scheme.method not in ("auto", "rtn"):
        raise FewbitError(f"--weights {scheme.weights} is a cast; --method {scheme.method} has nothing to solve")
    if given := _given(scheme, budget):
        raise FewbitError(f"--weights {scheme.weights} is a cast, all else stays float32; leave out {given[0]}")


def check_layers(names: list[str], scheme: qdq.Scheme) -> None:
    """Refuse a format for a layer that is not there, or that weights cannot have. names: of the network's layers."""
    for name, fmt in scheme.layers:
        if name not in names:
            raise FewbitError(f"--layer {name}={fmt}: no such layer; the layers are {', '.join(names)}")
        if fmt not in LAYER:
            raise FewbitError(f"--layer {name}={fmt}: no integer format of weights; one of {', '.join(LAYER)}")


def check_run(episodes: int, seed: int) -> None:
    """Refuse numbers of episodes and seeds that no run has."""
    if not 2 <= episodes <= MOST_EPISODES:
        why = "an interval needs at least 2" if episodes < 2 else f"give at most {MOST_EPISODES:,}"
        raise FewbitError(f"--episodes {episodes}: {why}")
    if not 0 <= seed < MOST_SEED:
        raise FewbitError(f"--seed {seed}: give a whole number of at least 0" + (", below 2^31" if seed > 0 else ""))
