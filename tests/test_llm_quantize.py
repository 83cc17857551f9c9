"""Language models to few bits: what is written, beside float64 arithmetic and transformers' own loading; kills; bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tiny_llm  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from fewbit.cli.main import app  # noqa: E402
from fewbit.errors import FewbitError  # noqa: E402
from fewbit.llm import artifact, blocks, entry, fold, methods, quantize, source, staged, walk  # noqa: E402
from fewbit.llm.options import Options  # noqa: E402
from fewbit.solvers import grouped  # noqa: E402
from fewbit.solvers.grids import Grid  # noqa: E402

SMALL = {"group_size": 16, "samples": 8, "length": 32}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a tiny Llama in `llama`, the same in shards in `sharded`, and a text."""
    folder = tmp_path_factory.mktemp("llm")
    tiny_llm.save(folder / "llama")
    tiny_llm.save(folder / "sharded", shards=True)
    tiny_llm.text(folder / "text.txt")
    return folder


def cli(*arguments: object) -> tuple[int, str]:
    """(exit status, the last line of standard error) of the command as a user runs it."""
    command = [sys.executable, "-c", "from fewbit.cli.main import main; main()", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stderr.strip()


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for p in folder.glob("*.safetensors") for n, t in load_file(p).items()}


@pytest.mark.parametrize("weights", ["int8", "int4", "int3", "int2"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_round_to_nearest_is_what_float64_arithmetic_says(home, tmp_path, weights, symmetric):
    """From the bytes on disk, unpacked bit by bit here."""
    out = tmp_path / "out"
    quantize.quantize(home / "llama", out, Options(weights, 16, symmetric, "rtn"))
    held, bits = tensors(out), int(weights[3:])
    for name, w in tensors(home / "llama").items():
        if "proj" not in name:
            assert torch.equal(held[name], w)
            continue
        base, w = name.removesuffix(".weight"), w.double().numpy()
        assert name not in held and (f"{base}.zero_point" in held) is not symmetric
        stream = np.unpackbits(held[f"{base}.codes"].numpy(), axis=1, bitorder="little")[:, : w.shape[1] * bits]
        codes = stream.reshape(*w.shape, bits) @ (1 << np.arange(bits))
        scale = held[f"{base}.scale"].double().numpy()
        zero = 2.0 ** (bits - 1) if symmetric else np.repeat(held[f"{base}.zero_point"].double().numpy(), 16, axis=1)
        groups = w.reshape(len(w), -1, 16)
        low, high = np.minimum(groups.min(2), 0), np.maximum(groups.max(2), 0)
        reach = np.maximum(-low, high) / (2 ** (bits - 1) - 1) if symmetric else (high - low) / (2**bits - 1)
        assert np.allclose(scale, reach, rtol=2e-3)  # float16
        spread = np.repeat(scale, 16, axis=1)
        assert np.abs(codes - np.clip(np.rint(w / spread) + zero, 0, 2**bits - 1)).max() <= 1  # a tie in float32
        assert (codes == np.clip(np.rint(w / spread) + zero, 0, 2**bits - 1)).mean() > 0.999
        assert np.allclose(artifact.state_dict(out)[name], (codes - zero) * spread, rtol=1e-6, atol=0)


@pytest.fixture(scope="module")
def layer() -> tuple[np.ndarray, np.ndarray]:
    """A weight [24, 64], and second moments of inputs that go together."""
    random = np.random.default_rng(0)
    x = (
        random.standard_normal((500, 64))
        @ (random.standard_normal((64, 64)) / 8 + np.eye(64))
        * np.exp(random.standard_normal(64))
    )
    return random.standard_normal((24, 64)).astype(np.float32), x.T @ x / 500


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_each_step_of_the_solver_lowers_the_output_error(layer, bits):
    weight, gram = layer
    grid = Grid(bits, 16)

    def loss(s: grouped.Solution) -> float:
        d = weight.astype(np.float64) - s.dequantized()
        return float(np.trace(d @ gram @ d.T))

    nearest = grouped.nearest(weight, grid)
    cost = 1 / np.diag(grouped.damped_inverse(gram))
    compensated = grouped.gptq(weight, grouped.clipped(weight, cost, grid), grouped.ordered(gram))
    descended = grouped.descend(weight, compensated, gram)
    refitted = grouped.rescaled(weight, descended, gram)
    assert loss(compensated) < 0.7 * loss(nearest)
    assert loss(descended) < loss(compensated)
    assert loss(refitted) < loss(descended)
    assert np.isclose(grouped.error(weight, refitted, gram), loss(refitted), rtol=1e-3)


def test_the_inverses_are_those_of_the_damped_moments():
    random = np.random.default_rng(0)
    x = random.standard_normal((300, 200))
    gram = x.T @ x / 300
    gram[5] = gram[:, 5] = 0  # an input that was always zero
    h = gram + np.diag(np.where(np.arange(200) == 5, 1.0, 0.0))
    h += 0.01 * np.diag(h).mean() * np.eye(200)
    upper = grouped.inverse_factor(gram)
    assert np.allclose(upper, np.triu(upper)) and np.allclose(upper.T @ upper @ h, np.eye(200), atol=1e-3)
    assert np.allclose(grouped.damped_inverse(gram) @ h, np.eye(200), atol=1e-9)


def test_gptq_is_the_algorithm_of_its_paper_column_by_column(layer):
    """Frantar et al. 2022, equation 2, in float64 without blocks or factors."""
    weight, gram = layer
    grid = Grid(4, 16)
    start = grouped.nearest(weight, grid)
    found = grouped.gptq(weight, start, grouped.ordered(gram))
    w, order = weight.astype(np.float64), list(np.argsort(-np.diag(gram), kind="stable"))
    h = gram + 0.01 * np.diag(gram).mean() * np.eye(64)
    codes = np.zeros(weight.shape)
    while order:
        j = order[0]
        inverse = np.linalg.inv(h[np.ix_(order, order)])
        scale, zero = start.scale[:, j // 16].astype(float), start.zero_point[:, j // 16]
        codes[:, j] = np.clip(np.rint(w[:, j] / scale) + zero, 0, 15)
        error = w[:, j] - (codes[:, j] - zero) * scale
        w[:, order] -= np.outer(error, inverse[0] / inverse[0, 0])
        order = order[1:]
    assert (codes == found.codes).mean() > 0.999


def test_a_layer_does_not_make_up_for_what_is_lost_beyond_measure(layer):
    """A drift a thousand times the outputs, as from one token whose huge hidden state is gone, leaves the weight its size."""
    weight, gram = layer
    drift = 1000 * np.random.default_rng(1).standard_normal(weight.shape) @ gram

    def size(w: np.ndarray) -> float:
        return float(np.sqrt(np.trace(w @ gram @ w.T)))

    for by, most in ((1.0, 1.7), (1e-6, 1.3)):
        moments = methods.Moments(gram, {"a": by * drift})
        found = methods.solve({"a": weight}, {"a": Grid(3, 16)}, moments, methods.METHODS["auto"])["a"]
        assert size(found.dequantized()) < most * size(weight)


def test_a_token_counts_by_the_stream_in_which_it_is_larger():
    exact, quantized = torch.ones(1, 3, 4), torch.ones(1, 3, 4)
    exact[0, 0], quantized[0, 1] = 100.0, 10.0
    (counts,) = walk._counts(walk.Streams([exact], [quantized]))
    assert torch.allclose(counts, torch.tensor([[1e-4, 1e-2, 1.0]]))


def _block(home: Path, family: str = "llama") -> tuple[blocks.Structure, torch.nn.Module, list[torch.Tensor], blocks.Call]:
    structure = blocks.read(source.open_source(home / family))
    states, calls = entry.entry(structure, list(torch.randint(0, 256, (2, 2, 24))))
    block = structure.blocks[0]
    blocks.fill(structure, block, f"{structure.prefix}0.")
    return structure, block, states, calls[0]


@pytest.mark.parametrize("family", tiny_llm.FAMILIES)
def test_the_walk_runs_the_model(tmp_path, family):
    """Block after block by hand gives transformers' own hidden states."""
    folder = tiny_llm.save(tmp_path / family, family)
    structure = blocks.read(source.open_source(folder))
    ids = torch.randint(0, 256, (2, 40))
    (states,), calls = entry.entry(structure, [ids])
    wanted = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        hidden = wanted(ids, output_hidden_states=True).hidden_states
        for k, block in enumerate(structure.blocks):
            blocks.fill(structure, block, f"{structure.prefix}{k}.")
            assert torch.allclose(states, hidden[k], atol=1e-4)
            states = blocks.run(block, states, calls[k])
            blocks.empty(block)
    assert all(p.is_meta for p in structure.model.parameters())


@pytest.mark.parametrize("family", tiny_llm.FAMILIES)
def test_columns_are_scaled_without_changing_the_block(tmp_path, family):
    tiny_llm.save(tmp_path / family, family)
    _, block, states, call = _block(tmp_path, family)
    groups = blocks.groups(block, blocks.probe(states[0]), call)
    assert [len(g) for g in groups] == [3, 1, 2, 1]
    with torch.no_grad():
        before = blocks.run(block, states[0], call)
    found = fold.producers(block, groups, blocks.probe(states[0]), call, 16)
    assert sorted(found) == [0, 1, 2, 3]
    for g, producer in found.items():
        consumers = [block.get_submodule(n) for n in groups[g]]
        old = consumers[0].weight.detach().clone()
        fold.apply(block, producer, consumers, torch.exp(0.5 * torch.randn(old.shape[1])), torch.float32)
        assert (consumers[0].weight / old - 1).abs().mean() > 0.1
    with torch.no_grad():
        after = blocks.run(block, states[0], call)
    assert torch.allclose(before, after, atol=1e-4 * float(before.abs().max()))


def test_batches_stop_at_each_group_and_see_the_weights_changed_there(home):
    """The staged run is a plain run of the final weights, and each group's inputs are those of the weights before it."""
    _, block, states, call = _block(home)
    groups = blocks.groups(block, blocks.probe(states[0]), call)
    seen = {}

    def at(g: int, inputs: list[torch.Tensor]) -> None:
        seen[g] = [x.clone() for x in inputs]
        for name in groups[g]:
            block.get_submodule(name).weight.data = torch.round(block.get_submodule(name).weight.data * 8) / 8

    out = staged.run(block, states, call, groups, at)
    inputs: dict[str, list[torch.Tensor]] = {}
    with blocks.inputs_watched(block, lambda n, x: inputs.setdefault(n, []).append(x)), torch.no_grad():
        plain = [blocks.run(block, x, call) for x in states]
    assert all(torch.equal(a, b) for a, b in zip(out, plain, strict=True))
    for g, names in enumerate(groups):
        assert all(torch.equal(a, b) for a, b in zip(seen[g], inputs[names[0]], strict=True))


def test_an_error_inside_a_stage_ends_its_threads(home):
    import threading

    _, block, states, call = _block(home)
    before = threading.active_count()

    def at(g: int, inputs: list[torch.Tensor]) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        staged.run(block, states, call, blocks.groups(block, blocks.probe(states[0]), call), at)
    assert threading.active_count() == before


def test_the_quantized_stream_is_the_quantized_prefix(home, tmp_path):
    """What a block is calibrated on: transformers' hidden states of the artifact so far."""
    structure, block, states, call = _block(home)
    streams = walk.Streams(list(states), list(states))
    walk.quantize_block(block, streams, call, methods.METHODS["auto"], lambda n, c: Grid(4, 16), torch.float32, 16)
    model = transformers.AutoModelForCausalLM.from_pretrained(home / "llama", dtype=torch.float32)
    with torch.no_grad():
        exact = [model.model.layers[0](x, **call.batch) for x in states]
    model.model.layers[0].load_state_dict(block.state_dict())
    with torch.no_grad():
        for x, was, quantized, float_ in zip(states, exact, streams.quantized, streams.exact, strict=True):
            assert torch.allclose(model.model.layers[0](x, **call.batch), quantized, atol=1e-5)
            assert torch.allclose(was, float_, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_better_methods_lose_less(tmp_path, family):
    """KL to the float model on text that was not calibrated on, by fewbit llm perplexity; and its figures by transformers."""
    folder = tiny_llm.save(tmp_path / family, family)
    text, other = tiny_llm.text(tmp_path / "a.txt", 8000), tiny_llm.text(tmp_path / "b.txt", 2000, seed=1)
    found = {}
    for method in ("rtn", "gptq", "auto"):
        out = tmp_path / method
        quantize.quantize(folder, out, Options("int4", 16, False, method, 32, 64), text)
        arguments = ["llm", "perplexity", out, "--text", other, "--against", folder, "--window", "64", "--json"]
        found[method] = json.loads(CliRunner().invoke(app, list(map(str, arguments))).stdout)
    assert found["auto"]["kl"] < 0.8 * found["gptq"]["kl"] < 0.8 * found["rtn"]["kl"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor(list(other.read_bytes())[: 2000 // 64 * 64]).reshape(-1, 64)
    remap = transformers.AutoTokenizer.from_pretrained(folder)(other.read_text())["input_ids"]
    ids = torch.tensor(remap[: ids.numel()]).reshape(-1, 64)
    with torch.no_grad():
        losses = [float(model(i[None], labels=i[None]).loss) for i in ids]
    assert np.isclose(found["auto"]["perplexity_float"], np.exp(np.mean(losses)), rtol=1e-4)
    assert found["auto"]["tokens"] == len(ids) * 63
    assert 0.5 < found["auto"]["top1_agreement"] <= 1


def test_shards_or_one_file_give_the_same_weights(home, tmp_path):
    for name in ("llama", "sharded"):
        quantize.quantize(home / name, tmp_path / name, Options(**SMALL), home / "text.txt")
    assert len(list((home / "sharded").glob("*.safetensors"))) > 1
    one, many = tensors(tmp_path / "llama"), tensors(tmp_path / "sharded")
    assert one.keys() == many.keys() and all(torch.equal(one[n], many[n]) for n in one)


def test_bfloat16_stays_bfloat16_where_it_is_not_quantized(tmp_path):
    folder = tiny_llm.save(tmp_path / "m", dtype=torch.bfloat16)
    quantize.quantize(folder, tmp_path / "out", Options(**SMALL), tiny_llm.text(tmp_path / "t.txt"))
    kinds = {t.dtype for n, t in tensors(tmp_path / "out").items() if n.endswith("weight")}
    assert kinds == {torch.bfloat16}


KILLS = """
import os, signal, sys, time
from pathlib import Path
import transformers
from fewbit.llm import perplexity, quantize
from fewbit.llm.options import Options
home, folder = Path(sys.argv[1]), Path(sys.argv[2])
for method in ("auto", "rtn"):
    for shards in (1, 2, 3):
        child = os.fork()  # before torch has threads
        if not child:
            quantize.quantize(home / "llama", folder / method, Options("int4", 16, False, method, 8, 32), home / "text.txt")
            os._exit(0)
        while len(list(folder.glob(f".{method}.part/artifact/model-*"))) < shards and not os.waitpid(child, os.WNOHANG)[0]:
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert not (folder / method).exists()
"""


def test_a_kill_at_any_moment_and_the_same_command_give_the_same_files(home, tmp_path):
    """SIGKILL after 0, 1 and 2 finished blocks, wherever it lands."""
    done = subprocess.run([sys.executable, "-c", KILLS, str(home), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for method in ("auto", "rtn"):
        options, out, wanted = Options("int4", 16, False, method, 8, 32), tmp_path / method, tmp_path / f"whole-{method}"
        assert (tmp_path / f".{method}.part").is_dir()
        lines: list[str] = []
        quantize.quantize(home / "llama", out, options, home / "text.txt", say=lines.append)
        assert "were finished before" in lines[0]
        quantize.quantize(home / "llama", wanted, options, home / "text.txt")
        assert files(out) == files(wanted) and not (tmp_path / f".{method}.part").exists()
        quantize.quantize(home / "llama", out, options, home / "text.txt")  # done already
        with pytest.raises(FewbitError, match="exists and is something else"):
            quantize.quantize(home / "llama", out, Options("int8", 16, False, method, 8, 32), home / "text.txt")


def test_the_command_line_says_what_is_wrong_in_one_line(home, tmp_path):
    status, line = cli("llm", "quantize", home / "sharded", "-o", tmp_path / "out", "--group-size", 48, "--method", "rtn")
    assert status == 2 and "does not divide" in line and "\n" not in line


def test_work_that_belongs_to_another_command_is_begun_anew(home, tmp_path, monkeypatch):
    save, calls = artifact.save, []

    def stop(path: Path, held: dict) -> None:
        calls.append(path)
        if len(calls) == 5:
            raise KeyboardInterrupt
        save(path, held)

    monkeypatch.setattr(artifact, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        quantize.quantize(home / "llama", tmp_path / "a", Options("int3", **SMALL), home / "text.txt")
    monkeypatch.setattr(artifact, "save", save)
    assert (tmp_path / ".a.part").is_dir() and not (tmp_path / "a").exists()
    quantize.quantize(home / "llama", tmp_path / "a", Options("int4", **SMALL), home / "text.txt")
    quantize.quantize(home / "llama", tmp_path / "b", Options("int4", **SMALL), home / "text.txt")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_the_forecast_names_time_and_memory(home, tmp_path):
    lines: list[str] = []
    record = quantize.quantize(home / "llama", tmp_path / "a", Options(**SMALL), home / "text.txt", say=lines.append)
    assert "left" in lines[0] and "peak memory" in lines[0]
    assert record["forecast"]["peak_bytes"] > 1e7 and record["forecast"]["seconds_left"] > 0


def _damaged(home: Path, tmp_path: Path, what: str) -> Path:
    import shutil

    folder = tmp_path / what
    shutil.copytree(home / "sharded", folder)
    config = json.loads((folder / "config.json").read_text())
    if what == "shard":
        sorted(folder.glob("model-*.safetensors"))[1].unlink()
    elif what == "structure":
        config |= {"model_type": "bert", "architectures": ["BertModel"]}
    elif what == "shape":
        config |= {"intermediate_size": 96}
    elif what == "layers":
        config |= {"num_hidden_layers": 4}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("folder", "no such folder"),
        ("empty", "config.json: no such file"),
        ("shard", "missing"),
        ("structure", "an encoder"),
        ("shape", "do not fit config.json"),
        ("layers", "model.layers.3."),
        ("text", "too few to calibrate on"),
        ("no text", "--calibration"),
        ("group", "16, 32, 64 do"),
        ("method", "choose one of"),
        ("weights", "choose one of"),
        ("binary", "not UTF-8"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(home, tmp_path, what, said):
    folder, text, options = home / "sharded", home / "text.txt", dict(SMALL)
    if what in ("shard", "structure", "shape", "layers"):
        folder = _damaged(home, tmp_path, what)
    elif what == "folder":
        folder = home / "none"
    elif what == "empty":
        folder = tmp_path
    elif what == "text":
        text = tmp_path / "short.txt"
        text.write_text("a few words")
    elif what == "binary":
        text = tmp_path / "b.txt"
        text.write_bytes(b"\xff\xfe\x00" * 100)
    elif what == "group":
        options["group_size"] = 48
    elif what == "method":
        options["method"] = "magic"
    elif what == "weights":
        options["weights"] = "int5"
    with pytest.raises(FewbitError) as caught:
        quantize.quantize(folder, tmp_path / "out", Options(**options), None if what == "no text" else text)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


PEAK = """
import sys
from pathlib import Path
import tiny_llm
from fewbit.llm import forecast, quantize
from fewbit.llm.options import Options
folder = Path(sys.argv[1])
peaks = []
for blocks in ("few", "many"):
    quantize.quantize(folder / blocks, folder / f"{blocks}.int4", Options(method="rtn"))
    peaks.append(forecast.peak_bytes())
print(peaks[1] - peaks[0])
"""


def test_memory_does_not_grow_with_the_number_of_blocks(tmp_path):
    """24 blocks of 4 MB are 100 MB; they may not show beside 4 of them."""
    for name, count in (("few", 4), ("many", 24)):
        tiny_llm.save(tmp_path / name, hidden_size=256, intermediate_size=1024, num_hidden_layers=count)
    folder = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": folder}
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 40e6
