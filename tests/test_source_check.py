"""An artifact is compared with the source it was made from: another one is refused, one that cannot be told is said."""

import numpy as np
import onnx_ir as ir
import pytest
import torch

import fewbit
from fewbit import pipeline
from fewbit.cli import common
from fewbit.graph import metadata

OBSERVATIONS = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)


def module(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1), torch.nn.Tanh())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two float policies as files and as live modules, and an artifact of the first file."""
    home = tmp_path_factory.mktemp("source")
    for seed in (0, 1):
        model = fewbit.sources.load(module(seed), None, (3,)).model
        (home / f"policy{seed}.onnx").write_bytes(metadata.to_bytes(model))
    artifact = fewbit.quantize(home / "policy0.onnx", observations=OBSERVATIONS, scheme=fewbit.Scheme(method="rtn"))
    artifact.save(home / "artifact.onnx")
    return home


def test_evaluate_refuses_another_source_and_names_both(made):
    with pytest.raises(fewbit.FewbitError, match=r"made from another source: from policy0\.onnx .*this is policy1\.onnx"):
        fewbit.evaluate(made / "artifact.onnx", "Pendulum-v1", made / "policy1.onnx", episodes=2)
    found = fewbit.evaluate(made / "artifact.onnx", "Pendulum-v1", made / "policy0.onnx", episodes=2)
    assert found["source_matches"] is True and found["source"] == "policy0.onnx"


def test_diff_refuses_another_source(made):
    with pytest.raises(fewbit.FewbitError, match="made from another source"):
        pipeline.diff(made / "policy1.onnx", made / "artifact.onnx", OBSERVATIONS)
    assert pipeline.diff(made / "policy0.onnx", made / "artifact.onnx", OBSERVATIONS)


def test_a_live_source_is_told_from_another_live_one_and_not_from_a_file(made, capsys):
    artifact = fewbit.quantize(module(0), observations=OBSERVATIONS, scheme=fewbit.Scheme(method="rtn"), observation_shape=(3,))
    live = [fewbit.sources.load(module(seed), None, (3,)) for seed in (0, 1)]
    file = fewbit.sources.load(made / "policy0.onnx")
    assert pipeline.check_source(artifact.record, live[0]) is True
    assert pipeline.check_source(artifact.record, file) is None
    with pytest.raises(fewbit.FewbitError, match="made from another source: from Sequential"):
        pipeline.check_source(artifact.record, live[1])
    common.show({"source": "policy0.onnx", "source_matches": None}, False)
    assert "policy0.onnx: not known to be what the artifact was made from" in capsys.readouterr().out


@pytest.mark.parametrize(
    "record", [{}, {"recipe": None}, {"recipe": {"source": 3, "source_sha256": []}}, {"recipe": {"source": "x"}}]
)
def test_a_file_that_names_no_source_is_compared(made, record):
    model = ir.load(made / "artifact.onnx")
    metadata.write(model, record)
    assert pipeline.check_source(metadata.read(model), fewbit.sources.load(made / "policy1.onnx")) is None
