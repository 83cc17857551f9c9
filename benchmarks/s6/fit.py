"""Fit the forms of S6 and measure them on all 65536 inputs. `python fit.py` prints the tables, `--dump DIR` writes the tables
that forms.cpp reads."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

CODES = np.arange(-32768, 32768)
# t^k minus these multiples of (1, t, t^2, ...) is the polynomial that deviates least from zero on [-1, 1]
CHEBYSHEV = {1: [0], 2: [0.5, 0], 3: [0, 0.75, 0], 4: [-0.125, 0, 1, 0], 5: [0, -0.3125, 0, 1.25, 0]}


def mulhrs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(a b + 2^14) >> 15: pmulhrsw, vqrdmulh."""
    return (a * b + 16384) >> 15


def nodes(length: int, degree: int) -> list[int]:
    """Offsets of the Chebyshev nodes in a segment of `length` codes, to the nearest code."""
    return [round(length / 2 * (1 - math.cos((2 * k + 1) * math.pi / (2 * degree + 2)))) for k in range(degree + 1)]


def polynomials(values: np.ndarray, degree: int) -> list[np.ndarray]:
    """float64 coefficients [degree + 1][segment] in t from -1 to 1; values [segment, code]. Newton, fixed order."""
    length = values.shape[1]
    at = nodes(length, degree)
    t = [2.0 * j / length - 1.0 for j in at]
    a = [values[:, j] for j in at]
    for order in range(1, degree + 1):
        for k in range(degree, order - 1, -1):
            a[k] = (a[k] - a[k - 1]) / (t[k] - t[k - order])
    c = [a[degree]]
    for k in range(degree - 1, -1, -1):
        c = [a[k] - t[k] * c[0]] + [c[j - 1] - t[k] * c[j] for j in range(1, len(c))] + [c[-1]]
    return c


def rint(c: np.ndarray) -> np.ndarray:
    """Half to even after snapping to 2^-20, so that noise of 1e-10 cannot break a tie."""
    return np.rint(np.rint(c * 2.0**20) / 2.0**20)


def rounded(real: list[np.ndarray], guard: int) -> np.ndarray:
    """int64 [degree + 1, segment]; what rounding takes from t^k goes to the lower powers."""
    c = [real[0]] + [r * 2.0**guard for r in real[1:]]
    for k in range(len(c) - 1, 0, -1):
        whole = rint(c[k])
        rest, c[k] = c[k] - whole, whole
        for j, part in enumerate(CHEBYSHEV[k]):
            c[j] = c[j] + rest * part * (2.0**-guard if j == 0 else 1.0)
    c[0] = np.clip(rint(c[0]), -32768, 32767)
    return np.array(c).astype(np.int64)


def horner(codes: np.ndarray, c: np.ndarray, guard: int) -> tuple[np.ndarray, int]:
    """The form: int64 outputs, and the largest intermediate (16 bits hold it if <= 32767)."""
    degree, segments = c.shape[0] - 1, c.shape[1]
    bits = 16 - (segments.bit_length() - 1)
    u = codes.astype(np.int64) + 32768
    i, f = u >> bits, ((u << (16 - bits)) & 65535) - 32768
    h = c[degree][i]
    largest = int(np.abs(h).max())
    for k in range(degree - 1, 0, -1):
        h = c[k][i] + mulhrs(h, f)
        largest = max(largest, int(np.abs(h).max()))
    return np.clip(c[0][i] + mulhrs(h, f >> guard), -32768, 32767), largest


def fit(values: np.ndarray, segments: int, degree: int) -> tuple[np.ndarray, int]:
    """values: the function at all 65536 codes, in output codes. Coefficients and guard bits."""
    real = polynomials(values.reshape(segments, -1), degree)
    for guard in range(segments.bit_length() - 1, -1, -1):
        c = rounded(real, guard)
        if max(horner(CODES, c, guard)[1], np.abs(c[1:]).max()) <= 32767:
            return c, guard
    raise ValueError("too steep for 16 bits")


def baseline(knots: np.ndarray) -> np.ndarray:
    """Form A before its rounding: codes times 32."""
    u = CODES + 32768
    i, f = u >> 5, u & 31
    return knots[i] * (32 - f) + knots[i + 1] * f


def half_even(a: np.ndarray, shift: int) -> np.ndarray:
    floor = a >> shift
    rest, half = a - (floor << shift), 1 << (shift - 1)
    return floor + ((rest > half) | ((rest == half) & (floor & 1 == 1)))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "mish": lambda x: x * np.tanh(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))),
    "leakyrelu": lambda x: np.where(x > 0, x, 0.01 * x),
    "hardswish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "hardsigmoid": lambda x: np.clip(x / 5 + 0.5, 0, 1),
    "exp": np.exp,
}
CASES = [("tanh", 8), ("sigmoid", 8)] + [(n, r) for n in list(FUNCTIONS)[2:-2] for r in (4, 8, 16, 32)]
DUMPED = [(32, 3), (32, 4), (64, 3), (64, 4), (2048, 1)]
CASES += [("hardsigmoid", 8), ("exp", 4)]


def output_scale(values: np.ndarray) -> float:
    peak = float(np.abs(values).max())
    return 2.0**-15 if 0.5 < peak <= 1 else float(np.float32(peak / 32767))


def case(name: str, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """The function in output codes at every input code, and at the 2049 knots."""
    function, scale = FUNCTIONS[name], reach / 32768
    values = function(CODES * scale)
    out = output_scale(values)
    return values / out, function((np.arange(2049) * 32 - 32768) * scale) / out


def errors(y: np.ndarray, exact: np.ndarray) -> str:
    e = np.abs(y - np.clip(exact, -32768, 32767))
    return f"{e.max():7.2f} {e.mean():5.3f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--dump", type=Path)
    dump = parser.parse_args().dump
    forms = [(16, 4), (16, 5), (32, 3), (32, 4), (32, 5), (64, 3), (64, 4), (2048, 1)]
    print("max and mean error in output codes; [g] guard bits; {share of int8 outputs that differ, in %}")
    print(f"{'':14}{'table 2049':>21}" + "".join(f"{f'{s} x {d}':>25}" for s, d in forms))
    for name, reach in CASES:
        exact, at_knots = case(name, reach)
        knots = np.clip(np.rint(at_knots), -32768, 32767).astype(np.int64)
        a = baseline(knots)
        want8 = np.clip(np.rint(exact / 256), -128, 127)

        def flips(y8: np.ndarray, want8: np.ndarray = want8) -> str:
            return f"{{{100 * np.mean(np.clip(y8, -128, 127) != want8):4.2f}}}"

        row = f"{name + ' ' + str(reach):14} {errors(half_even(a, 5), exact)} {flips(half_even(a, 13))}"
        for s, d in forms:
            try:
                c, g = fit(exact, s, d)
            except ValueError:
                row += f"{'steep':>25}"
                continue
            y = horner(CODES, c, g)[0]
            row += f"  {errors(y, exact)} [{g:2}]{flips(half_even(y, 8))}"
            if dump and (name, reach) in (("tanh", 8), ("silu", 8)) and (s, d) in DUMPED:
                dump.mkdir(exist_ok=True)
                np.append(c.ravel(), g).astype("<i2").tofile(dump / f"{name}_{s}_{d}.coefficients")
                y.astype("<i2").tofile(dump / f"{name}_{s}_{d}.outputs")
                knots.astype("<i2").tofile(dump / f"{name}.knots")
                ((a + 16) >> 5).clip(-32768, 32767).astype("<i2").tofile(dump / f"{name}.outputs")
        print(row, flush=True)
