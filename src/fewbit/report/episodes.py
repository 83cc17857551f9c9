"""The episodes: returns of float and quantized as pairs, and one episode of both side by side until they part."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewbit.engine.policy import Policy
from fewbit.report import plot

Words = dict[str, Any]
PARTED = 1.0  # of an observation's own standard deviation: from there on the two live through different things
SHOWN_AFTER = 120  # steps behind the parting that are drawn still


@dataclass(frozen=True)
class Trace:
    """One episode: observations [steps, ...], actions [steps, ...], rewards [steps], images of every so many steps."""

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    images: list[np.ndarray]
    ended: bool


def trace(
    policy: Policy, env: Any, seed: int, steps: int, every: int = 0, view: Callable[[Any], np.ndarray] | None = None
) -> Trace:
    """Up to `steps` of one episode; every: take view(env) each so many steps."""
    observation, state = env.reset(seed=seed)[0], policy.initial(1)
    seen: list[np.ndarray] = []
    acted, rewards, images, ended = [], [], [], False
    while len(seen) < steps and not ended:
        if every and view and len(seen) % every == 0:
            images.append(view(env))
        batch = {k: v[None] for k, v in observation.items()} if isinstance(observation, dict) else observation[None]
        actions, state = policy.step(batch, state)
        action = np.asarray(actions)[0]
        seen.append(np.concatenate([np.ravel(v) for v in observation.values()]) if isinstance(observation, dict) else observation)
        acted.append(np.atleast_1d(action))
        box = getattr(env.action_space, "shape", ())
        observation, reward, terminated, truncated, _ = env.step(action.reshape(box) if box else int(action))
        rewards.append(float(reward))
        ended = bool(terminated or truncated)
    if every and view:
        images.append(view(env))
    return Trace(np.stack(seen).reshape(len(seen), -1), np.stack(acted).reshape(len(acted), -1), np.array(rewards), images, ended)


def part(a: np.ndarray, b: np.ndarray) -> tuple[int | None, np.ndarray]:
    """(the first step at which observations [steps, n] of two episodes are PARTED, their distance at each common step)."""
    both = min(len(a), len(b))
    scatter = np.maximum(a.std(axis=0), 1e-6 + 1e-3 * np.abs(a).max())
    distance = (np.abs(a[:both] - b[:both]) / scatter).max(axis=1)
    over = np.flatnonzero(distance > PARTED)
    return (int(over[0]) if len(over) else None), distance


def episodes(floats: list[float], quantized: list[float], first: int, traces: tuple[Trace, Trace] | None) -> Words:
    """{"pairs": rows, "figure", "trace"}: returns by seed from `first` on; traces of both on one seed."""
    pairs = zip(floats, quantized, strict=True)
    rows = [{"seed": first + k, "float": f"{f:.1f}", "quantized": f"{q:.1f}"} for k, (f, q) in enumerate(pairs)]
    figure = _pairs(np.array(floats), np.array(quantized)) if rows else None
    alike = bool(rows) and _pair(np.array(floats), np.array(quantized))
    return {"pairs": rows, "figure": figure, "alike": alike, "trace": _trace(*traces) if traces else None}


def _pair(f: np.ndarray, q: np.ndarray) -> bool:
    """Do equal seeds give about equal returns: is most of the scatter the seeds' own?"""
    return bool(((f - q) ** 2).mean() < 0.1 * (f.var() + q.var()) or np.array_equal(f, q))


def _pairs(f: np.ndarray, q: np.ndarray) -> Any:
    with plot.figure(width=4.4, height=3.6) as (made, axes):
        both = np.append(f, q)
        low, high = both.min(), both.max()
        margin = 0.08 * (high - low) or max(1.0, 0.05 * abs(high))
        line = [low - margin, high + margin]
        axes.plot(line, line, color=plot.COLOUR["soft"], linewidth=1, linestyle=(0, (4, 3)))
        axes.plot(f, q, "o", color=plot.COLOUR["quantized"], markersize=5, alpha=0.7, markeredgewidth=0)
        axes.set_xlim(*line)
        axes.set_ylim(*line)
        axes.set_aspect("equal")
        axes.set_xlabel("return of the float policy")
        axes.set_ylabel("return of the quantized one")
        return plot.svg(
            made, f"Returns of {len(f)} episodes, float against quantized on equal seeds; the table holds the numbers."
        )


def _trace(f: Trace, q: Trace) -> Words:
    parted, distance = part(f.observations, q.observations)
    end = min(max(len(f.actions), len(q.actions)), (parted if parted is not None else len(distance)) + SHOWN_AFTER)
    return {
        "parted": parted,
        "steps": [len(f.actions), len(q.actions)],
        "returns": [f"{t.rewards.sum():.1f}" for t in (f, q)],
        "figure": _traces(f, q, parted, distance, end),
    }


def _traces(f: Trace, q: Trace, parted: int | None, distance: np.ndarray, end: int) -> Any:
    """The observation that tells them apart first, the action that moves most, and the distance of all observations."""
    at = min(parted if parted is not None else len(distance) - 1, len(distance) - 1)
    scatter = np.maximum(f.observations.std(axis=0), 1e-6 + 1e-3 * np.abs(f.observations).max())
    o = int((np.abs(f.observations[at] - q.observations[at]) / scatter).argmax())
    a = int(np.ptp(f.actions, axis=0).argmax())
    with plot.figure(3, height=4.6, sharex=True) as (made, axes):
        observed, acted = (f.observations[:, o], q.observations[:, o]), (f.actions[:, a], q.actions[:, a])
        for row, name, values in ((axes[0], f"observation {o}", observed), (axes[1], f"action {a}", acted)):
            for who, series, width in (("float", values[0], 2.2), ("quantized", values[1], 1.1)):
                row.plot(series[:end], color=plot.COLOUR[who], linewidth=width, label=who if row is axes[0] else None)
            row.set_ylabel(name)
        axes[2].plot(np.maximum(distance[:end], 1e-5), color=plot.COLOUR["ink"], linewidth=1.1)
        axes[2].axhline(PARTED, color=plot.COLOUR["soft"], linewidth=1, linestyle=(0, (4, 3)))
        axes[2].set_yscale("log")
        powers = [10.0**k for k in range(-5, 3)]
        axes[2].set_yticks(powers, [f"{v:g}" for v in powers])
        axes[2].set_ylim(max(1e-5, distance[:end].min() / 2), max(1.0, distance[:end].max() * 2))
        axes[2].minorticks_off()
        axes[2].set_ylabel("distance")
        axes[2].set_xlabel("step")
        if parted is not None:
            for row in axes:
                row.axvline(parted, color=plot.COLOUR["bad"], linewidth=1)
        made.legend(loc="outside upper right", ncols=2)
        return plot.svg(
            made, "One observation, one action and the distance of all observations, step by step, float and quantized."
        )
