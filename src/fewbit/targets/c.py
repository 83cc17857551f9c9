"""C for microcontrollers: one .c and one .h, C99, no heap, no libm, the reference's bits (docs/c.md).

c_writer turns the flat program (engine/flatten) into calls of the few kernels in c_templates/; here the templates are filled.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.engine import reference
from fewbit.engine.flat import Flat
from fewbit.engine.flatten import flatten
from fewbit.engine.lower import lower
from fewbit.engine.program import Linear, Program, Quantize
from fewbit.engine.state import integer
from fewbit.errors import FewbitError
from fewbit.escape import c_comment
from fewbit.files import write_whole
from fewbit.graph import metadata
from fewbit.graph.raw import take_integers
from fewbit.graph.read import read
from fewbit.graph.record import known
from fewbit.targets import c_check
from fewbit.targets.c_weights import by_dsp, order_of
from fewbit.targets.c_writer import C_TYPES, LIMITS, ROUNDING, SIZES, Writer, array

SELF_TESTS = 4
NAMED = 4  # operators that a refusal lists

# layout -> {file of the folder: template}; NAME is the network's
LAYOUTS: dict[str, dict[str, str]] = {
    "plain": {"NAME.c": "policy.c", "NAME.h": "policy.h"},
    "arduino": {  # PlatformIO reads it too
        "src/NAME.c": "policy.c",
        "src/NAME.h": "policy.h",
        "library.properties": "layouts/library.properties",
        "library.json": "layouts/library.json",
        "examples/Act/Act.ino": "layouts/Act.ino",
    },
    "esp-idf": {
        "NAME.c": "policy.c",
        "NAME.h": "policy.h",
        "CMakeLists.txt": "layouts/idf_component.cmake",
        "examples/act/main/CMakeLists.txt": "layouts/idf_example.cmake",
        "examples/act/main/main.c": "layouts/main.c",
    },
    "zephyr": {
        "NAME.c": "policy.c",
        "NAME.h": "policy.h",
        "CMakeLists.txt": "layouts/zephyr_module.cmake",
        "zephyr/module.yml": "layouts/module.yml",
        "samples/act/CMakeLists.txt": "layouts/zephyr_sample.cmake",
        "samples/act/prj.conf": "layouts/prj.conf",
        "samples/act/src/main.c": "layouts/main.c",
    },
}


def export(
    artifact: Path,
    out: Path,
    name: str = "policy",
    layout: str = "plain",
    raw: str = "",
    raw_factors: np.ndarray | None = None,
    raw_offsets: np.ndarray | None = None,
) -> dict[str, Any]:
    """Write the network into the folder out: {"files", "flash_bytes" (constants), "ram_bytes", "state_bytes", "macs",
    "executed": by which compiler its self-test was run here, or why it was not}.

    raw: the type of a sensor's integers, which are then the observation; each times its factor, plus its offset (graph/raw).
    """
    if layout not in LAYOUTS:
        raise FewbitError(f"--layout {layout} is unknown; choose one of {', '.join(LAYOUTS)}")
    if out.exists() and not out.is_dir():
        raise FewbitError(f"{out}: is a file; give the folder to write the C files into")
    model = read(artifact)
    if raw:
        model = take_integers(model, raw, np.ones(1) if raw_factors is None else raw_factors, raw_offsets)
    elif raw_factors is not None or raw_offsets is not None:
        raise FewbitError("--raw-factors and --raw-offsets belong to --raw TYPE")
    evidence = known(metadata.read(model))["evidence"]
    made = generate(lower(model), name, artifact.name, evidence, layout=layout)
    executed, files = c_check.run(made["files"], name), []
    for file, text in made["files"].items():
        path = out / file
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
        files.append(str(path))
    return {"files": files, **made["sizes"], "executed": executed}


def generate(
    program: Program,
    name: str,
    source: str = "",
    evidence: dict[str, Any] | None = None,
    tests: dict[str, np.ndarray] | None = None,
    layout: str = "plain",
) -> dict[str, Any]:
    """{"files": {path: text}, "sizes"}; refuses by name what has no integer form (S10). tests: the self-test's observations."""
    import jinja2

    if not any(isinstance(step, Linear | Quantize) for step in program.steps):
        raise FewbitError("this network runs in float (exact: no), which C without libm cannot; quantize it first")
    if not program.exact:
        more = f" and {len(program.inexact) - NAMED} more" if len(program.inexact) > NAMED else ""
        raise FewbitError(
            f"C without libm cannot run what runs in float here: {', '.join(program.inexact[:NAMED])}{more}; "
            "export the network without that, or run the artifact by fewbit.load(FILE)"
        )
    if not re.fullmatch(r"[a-z_][a-z0-9_]*", name):
        raise FewbitError(f"--name {name}: give a C identifier in lower case")
    program = integer(program)
    writer = Writer(program, flatten(program, 1, patches=False))
    calls = [writer.call(k, c) for k, c in enumerate(writer.flat.calls)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("c_templates")),
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["comment"] = c_comment
    held = {s.input: s for s in program.state}
    ends = {"inputs": writer.inputs(), "outputs": writer.outputs()}
    sizes = {
        "flash_bytes": sum(c.bytes for c in writer.constants),
        "ram_bytes": sum(count * SIZES[C_TYPES[t]] for (t, _), count in writer.slots.items()),
        "state_bytes": sum(SIZES[e.type] * e.count for e in ends["inputs"] if e.held),
        "macs": _multiplications(writer.flat),
    }
    kinds = writer.kernels.values()
    dsp = {n: k for n, k in writer.kernels.items() if k["operation"] == "linear" and by_dsp(k)}
    context = {
        "name": name, "source": source, "evidence": evidence or {}, "sizes": sizes, "calls": calls, "kernels": writer.kernels,
        "rounds": any(k["operation"] in ROUNDING and k.get("y") != "f32" and k.get("round") != "high" for k in kinds),
        "rounds_high": any(k.get("round") == "high" for k in kinds), "dsp_kernels": set(dsp),
        "dsp": sorted({k["x"] for k in dsp.values() if k["w"] == "w8"}),
        "dsp_packed": sorted({(int(k["w"][1:]), k["x"]) for k in dsp.values() if k["w"] in ("w2", "w4")}),
        "constants": writer.constants, "slots": writer.slots, "c_types": C_TYPES, "limits": LIMITS, "array": array,
        "orders": order_of,
        "observations": [e for e in ends["inputs"] if not e.held], "actions": [e for e in ends["outputs"] if not e.held],
        "state": [e for e in ends["inputs"] if e.held], "left": [e for e in ends["outputs"] if not e.direct],
        "initial": {e.name: held[e.register].initial.reshape(-1) for e in ends["inputs"] if e.held},
        "tests": _tests(program, tests or _observations(program)),
    }  # fmt: skip
    context["entry"] = "app_main" if layout == "esp-idf" else "main"
    files = {file.replace("NAME", name): environment.get_template(t).render(context) for file, t in LAYOUTS[layout].items()}
    return {"files": files, "sizes": sizes}


def _multiplications(flat: Flat) -> int:
    """Of one action: a layer's weights, as often as there are positions that it is applied at."""
    weights = {"linear": 0, "conv": 3}  # where the weight is among a call's arguments
    layers = [(flat.registers[c.registers[-1]], c.arguments[weights[c.operation]]) for c in flat.calls if c.operation in weights]
    return sum(weight.size * out.layout.count for out, weight in layers)


def _observations(program: Program) -> dict[str, np.ndarray]:
    rng, kinds = np.random.default_rng(0), program.input_dtypes
    size = sum(int(np.prod(shape)) for shape in program.observations.values())
    count = SELF_TESTS if size < 4096 else 1  # an image is many bytes of flash
    made = {k: (count, *shape) for k, shape in program.observations.items()}
    values = {k: rng.normal(0, 2, s) if kinds[k].kind == "f" else rng.integers(0, 100, s) for k, s in made.items()}
    return {k: v.astype(kinds[k]) for k, v in values.items()}


def _tests(program: Program, feeds: dict[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Observations for the self-test and the reference's actions, one observation after the other from a reset on.

    Args:
        program: in integers. feeds: observations [count, ...] by input name, without the state.

    Returns:
        {"inputs", "outputs"}: flat arrays of count rows each, in the program's order; state is in neither. An output that no
        input reaches has its one row count times.
    """
    held = {s.output for s in program.state}
    given = {k: np.asarray(feeds[k], program.input_dtypes[k]) for k in program.observations}
    state = {s.input: s.initial[None] for s in program.state}
    found: dict[str, list[np.ndarray]] = {o: [] for o in program.outputs if o not in held}
    for k in range(len(next(iter(given.values())))):
        made = reference.run(program, {name: v[k : k + 1] for name, v in given.items()} | state)
        state = {s.input: made[s.output] for s in program.state}
        for name, rows in found.items():
            rows.append(made[name].reshape(-1))
    return {"inputs": [v.reshape(-1) for v in given.values()], "outputs": [np.concatenate(v) for v in found.values()]}
