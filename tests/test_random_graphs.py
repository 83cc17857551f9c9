"""Random networks as exporters write them are right in every executor, or refused by a line that names the cause."""

import os

import pytest
from random_graphs.sample import sample
from random_graphs.verdict import judge

COUNT, SHARES = int(os.environ.get("FEWBIT_RANDOM_GRAPHS", 300)), 10


@pytest.mark.parametrize("share", range(SHARES))
def test_a_random_network_is_right_in_every_executor_or_refused_by_its_cause(share, tmp_path):
    faults = []
    for seed in range(share, COUNT, SHARES):
        verdict = judge(sample(seed), tmp_path, ("int16", "int8") if seed % 3 == 0 else ("int16",))
        faults += [f"seed {seed}: {fault}" for fault in verdict.faults]
    assert not faults, "\n".join(faults)
