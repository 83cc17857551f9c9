"""Options that would do nothing, or contradict each other, are refused by one line before any work."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT
from test_recorded import GOAL, OBS, network

import fewbit
from fewbit import ladder
from fewbit.cli.main import main
from fewbit.graph.qdq import Scheme

DEMO = str(ROOT / "demo" / "halfcheetah.zip")


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """refused(arguments, says): the command line ends with status 2 and that one line, and writes nothing."""
    monkeypatch.chdir(tmp_path)
    network(tmp_path / "policy.onnx")
    np.savez(tmp_path / "x.npz", obs=OBS, goal=GOAL)

    def run(arguments: str, says: str) -> None:
        before = set(tmp_path.iterdir())
        monkeypatch.setattr(sys, "argv", ["fewbit", *arguments.split()])
        with pytest.raises(SystemExit) as end:
            main()
        err = capsys.readouterr().err
        assert end.value.code == 2 and err.count("\n") == 1 and says in err, (arguments, err)
        assert set(tmp_path.iterdir()) == before

    return run


GO = "quantize policy.onnx -o q.onnx --observations x.npz"


@pytest.mark.parametrize(
    "options, says",
    [
        ("--method dynamic --activations uint16", "leave out --activations uint16"),
        ("--method dynamic --inputs int8", "leave out --inputs int8"),
        ("--method dynamic --ranges mse", "leave out --ranges mse"),
        ("--method dynamic --layer x=int4", "leave out --layer x=int4"),
        ("--method dynamic --budget 500", "leave out --budget 500"),
        ("--method dynamic --weights int4", "leave out --weights int4"),
        ("--method dynamic --target onnxruntime", "leave out --target onnxruntime"),
        ("--weights float16 --activations int8", "leave out --activations int8"),
        ("--weights bfloat16 --inputs int8", "leave out --inputs int8"),
        ("--weights float16 --ranges entropy", "leave out --ranges entropy"),
        ("--weights float16 --method rtn --layer x=int4", "leave out --layer x=int4"),
        ("--weights bfloat16 --budget 500", "leave out --budget 500"),
        ("--weights float16 --method gptq", "nothing to solve"),
        ("--weights int4 --budget 500", "leave out --weights int4"),
        ("--method rtn --layer x=int4 --layer x=int8", "--layer x: is given more than once"),
        ("--method rtn --layer x=uint8", "--layer x=uint8: no"),
        ("--method rtn --layer x=int4 --budget 500", "--layer belongs to a pinned --method without --budget"),
        ("--method auto --layer x=int4", "--layer belongs to a pinned --method"),
        ("--train-steps 5", "here nothing trains"),
        ("--method gptq --train-steps 5", "here nothing trains"),
        ("--budget 500 --train-steps 5", "here nothing trains"),
        ("--method qat --train-steps 0", "--train-steps 0: give at least 1"),
        ("--episodes 5", "--episodes belongs to an environment"),
        ("--keep 0.9", "--keep belongs to an environment"),
        ("--seed -1", "--seed -1: give a whole number of at least 0"),
        ("--seed 99999999999", "--seed 99999999999: give a whole number of at least 0, below 2^31"),
        ("--method gtpq", "give auto, dynamic, qat or, joined by +,"),
        ("--weights auto", "a search measures"),
    ],
)
def test_of_quantize(refused, options, says):
    refused(f"{GO} {options}", says)


@pytest.mark.parametrize(
    "command, says",
    [
        (f"quantize {DEMO} -o q.onnx --env Nosuch-v0 --train-steps 5", "here nothing trains"),
        (f"quantize {DEMO} -o q.onnx --env Nosuch-v0 --episodes 1", "an interval needs at least 2"),
        (f"quantize {DEMO} -o q.onnx --env Nosuch-v0 --episodes 99999999999", "give at most 1,000,000"),
        (f"quantize {DEMO} -o q.onnx --env Nosuch-v0 --env-arg a=1 --env-arg a=2", "a is given more than once"),
        ("evaluate policy.onnx --env Nosuch-v0 --episodes 99999999999", "give at most 1,000,000"),
        ("evaluate policy.onnx --env Nosuch-v0 --normalizer x.npz", "--normalizer belongs to the float source"),
        ("inspect policy.onnx --weights int8", "--weights belongs to --sensitivity"),
        ("inspect policy.onnx --episodes 3", "--episodes belongs to --sensitivity"),
        ("bench policy.onnx --against numpy --source a.zip", "--source is for the peer sb3"),
        ("plan policy.onnx --context 8", "--context belongs to a language model"),
        ("plan 1M --kv int8", "--kv belongs to a language model"),
        ("report policy.onnx -o r.html --normalizer x.npz", "--normalizer belongs to --against SOURCE"),
        ("report policy.onnx -o r.html --agent a", "--agent belongs to --peers"),
        ("report policy.onnx -o r.html --windows 3", "--windows belongs to a language model's page"),
        ("report policy.onnx -o r.html --text x.npz", "--text belongs to a language model's page"),
        ("report . -o r.html --env A-v0", "--env belongs to a policy's page"),
        ("report . -o r.html --sensitivity", "--sensitivity belongs to a policy's page"),
        ("report . -o r.html --windows 3", "--windows belongs to --text"),
        ("report . -o r.html --text x.npz", "add --against MODEL_DIR"),
    ],
)
def test_of_the_other_verbs(refused, command, says):
    refused(command, says)


@pytest.mark.parametrize(
    "command, says",
    [
        ("quantize . -o out --method rtn --calibration a.txt", "--calibration belongs to a --method that calibrates"),
        ("quantize . -o out --method rtn --samples 5", "--samples belongs to a --method that calibrates"),
        ("quantize . -o out --weights q4_k --group-size 32", "--group-size belongs to int8, int4, int3 and int2 weights"),
        ("quantize . -o out --weights q4_0 --symmetric", "--symmetric belongs to int8, int4, int3 and int2 weights"),
        ("quantize . -o out --weights int8 --bits-per-weight 4", "leave out --weights int8"),
        ("export made --to gguf -o a.gguf --method gptq", "--method belongs to a float checkpoint"),
        ("export made --to gguf -o a.gguf --group-size 64", "--group-size belongs to a float checkpoint"),
        (
            "export . --to gguf --type f16 --calibration a.txt -o a.gguf",
            "--calibration belongs to a type and --method that calibrate",
        ),
        ("export . --to gguf --type q4_0 --method rtn --length 9 -o a.gguf", "--length belongs to a type and --method that"),
        ("export . --to gguf --type q4_0 --symmetric -o a.gguf", "--symmetric belongs to --type int8 and int4"),
        ("export . --to compressed-tensors --type fp8 --group-size 64 -o out", "--group-size belongs to --type int8 and int4"),
        ("generate made hello --seed 3", "--seed belongs to --temperature above 0"),
    ],
)
def test_of_language_models(refused, tmp_path, command, says):
    from fewbit.llm import packed

    (tmp_path / "made").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "made" / "config.json").write_text(f'{{"quantization_config": {{"quant_method": "{packed.METHOD}"}}}}')
    refused(f"llm {command}", says)


def test_python_is_refused_the_same(tmp_path):
    policy = network(tmp_path / "policy.onnx")
    given = {"obs": OBS, "goal": GOAL}
    for options, says in (
        ({"scheme": Scheme("float16"), "budget": 500}, "leave out --budget"),
        ({"scheme": Scheme(method="dynamic"), "budget": 500}, "leave out --budget"),
        ({"seed": -1}, "--seed -1"),
        ({"env_args": {"reward": 1}}, "env_args belong to an environment"),
    ):
        with pytest.raises(fewbit.FewbitError, match=says):
            fewbit.quantize(policy, observations=given, **options)
    with pytest.raises(fewbit.FewbitError, match="nothing to search for"):
        fewbit.search(policy, lambda act, seed: 1.0, given, scheme=Scheme("float16"))


def test_python_has_the_command_lines_defaults(tmp_path, monkeypatch, capsys):
    from inspect import signature

    from fewbit import pipeline
    from fewbit.cli.quantize import quantize

    given = {k: v.default for k, v in signature(quantize).parameters.items()}
    fields = ("weights", "activations", "inputs", "ranges", "method", "target")
    assert {k: getattr(pipeline.DEFAULT, k) for k in fields} == {k: given[k] for k in fields}
    assert signature(pipeline.quantize).parameters["seed"].default == given["seed"]
    monkeypatch.chdir(tmp_path)
    network(tmp_path / "policy.onnx")
    np.savez(tmp_path / "x.npz", obs=OBS, goal=GOAL)
    monkeypatch.setattr(sys, "argv", ["fewbit", *GO.split()])
    with pytest.raises(SystemExit):
        main()
    made = fewbit.quantize("policy.onnx", observations="x.npz")
    assert made.record["recipe"]["method"] == ladder.BEST and repr(made) == "Artifact(policy.onnx, int8, smooth+gptq)"
    here, there = fewbit.load(made.model, "reference"), fewbit.load("q.onnx", "reference")
    np.testing.assert_array_equal(here({"obs": OBS, "goal": GOAL}), there({"obs": OBS, "goal": GOAL}))


BITS = {"int4": 4, "int6": 6, "int8": 8, "int16": 16, "int2": 2, "int3": 3, "ternary": 2, "float16": 16}


@pytest.mark.parametrize("weights", ["int16", "int8", "int6", "int4", "int3", "int2", "ternary"])
@pytest.mark.parametrize("activations", ["uint8", "int8", "uint16"])
def test_a_search_never_goes_back_to_fewer_bits(weights, activations):
    scheme = Scheme(weights, activations, method="auto")
    tried = [rung for _, rung in ladder.rungs(scheme, "head")]
    assert len(set(tried)) == len(tried)
    least = [min(BITS[f] for f in (r.weights, *(f for _, f in r.layers))) for r in tried if r.method != "qat"]
    assert least == sorted(least) and all(n >= BITS[weights] for n in least)
    wide = [r.activations == "uint16" or r.weights == "float16" for r in tried if r.method != "qat"]
    assert wide == sorted(wide)


def test_a_search_with_16_bit_weights_keeps_them():
    tried = [rung for _, rung in ladder.rungs(Scheme("int16", method="auto"), "head")]
    assert [replace(r, method="") for r in tried][:2] == [Scheme("int16", method=""), Scheme("int16", "uint16", method="")]
    assert not any(r.layers for r in tried)
