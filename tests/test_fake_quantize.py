"""The torch arithmetic equals the NumPy arithmetic bit for bit; its gradient is straight-through."""

import numpy as np
import pytest
import torch

from fewbit.numerics import affine
from fewbit.numerics.formats import INTEGERS
from fewbit.train import fake_quantize as fq


@pytest.mark.parametrize("name", list(INTEGERS))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("axis, group_size", [(None, None), (0, None), (-1, None), (1, 5), (0, 3)])
def test_torch_equals_numpy_bit_for_bit(name, symmetric, axis, group_size):
    fmt, rng = INTEGERS[name], np.random.default_rng(0)
    if symmetric and not fmt.signed:
        return
    x = (rng.standard_t(2, (7, 33)) * 10.0 ** rng.integers(-8, 8, (7, 33))).astype(np.float32)
    p = affine.parameters(x, fmt, symmetric, axis, group_size)
    x[0, :4] = [np.inf, -np.inf, np.nan, 0]
    scales = np.broadcast_to(affine.spread(p.scale, x.shape, axis, group_size), x.shape)
    x[1] = scales[1] * (rng.integers(-9, 9, 33) + 0.5)  # ties
    scale, zero = fq.tensors(p)
    q = fq.quantize(torch.tensor(x), scale, zero, fmt, axis, group_size)
    want = affine.to_codes(x, p)
    assert np.array_equal(q.numpy().astype(np.int64), want.astype(np.int64))
    back = fq.dequantize(q, scale, zero, axis, group_size).numpy()
    assert np.array_equal(back.view(np.uint32), affine.to_floats(want, p).view(np.uint32))
    if fmt.bits < 32:
        fake = fq.fake_quantize(torch.tensor(x), scale, zero, fmt, axis, group_size).numpy()
        assert np.array_equal(fake.view(np.uint32), back.view(np.uint32)) or np.array_equal(fake, back)


def test_gradient_is_one_inside_and_zero_where_it_saturates():
    x = torch.tensor([-200.0, -1.0, 0.3, 126.9, 128.0], requires_grad=True)
    fq.fake_quantize(x, torch.tensor(1.0), torch.tensor(0), INTEGERS["int8"]).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 1, 1, 0]
