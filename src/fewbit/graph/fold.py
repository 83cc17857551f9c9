"""Straighten a float graph: constants folded, every dense layer a Gemm with weight [out, in], nothing unused left.

The graph's outputs stay what they were (to float rounding): tests/test_fold.py checks it.
"""

import onnx_ir as ir

from fewbit.graph.branches import take_branches
from fewbit.graph.edit import make_outputs, remove_unused, shape_constant_outputs
from fewbit.graph.fold_affine import fold_affine
from fewbit.graph.fold_choices import fold_choices
from fewbit.graph.fold_constants import fold_constants, refuse_random
from fewbit.graph.fold_conv import fold_conv, refuse_conv
from fewbit.graph.fold_dense import fold_dense, refuse_left
from fewbit.graph.fold_heads import fold_heads
from fewbit.graph.fold_moves import fold_moves
from fewbit.graph.fold_recurrent import fold_recurrent
from fewbit.graph.fold_shapes import fold_shapes
from fewbit.graph.infer import forget, infer

STEPS = (
    fold_constants, take_branches, fold_recurrent, fold_shapes, fold_moves, fold_conv, fold_dense, fold_affine, fold_heads,
    fold_choices, remove_unused,
)  # fmt: skip


def fold(model: ir.Model) -> ir.Model:
    """Rewrite in place until nothing changes; the same model is returned.

    Raises FewbitError for what draws random numbers or is in training mode, and for dense layers of what is not known.
    """
    make_outputs(model.graph)
    changed = True
    while changed:
        infer(model)
        changed = any([step(model.graph) for step in STEPS])
    for node in model.graph.all_nodes():
        refuse_random(node)
        refuse_left(node)
        refuse_conv(node)
    shape_constant_outputs(model.graph)
    forget(model.graph)
    return model
