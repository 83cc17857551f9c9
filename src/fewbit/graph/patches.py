"""A convolution is a linear layer over patches: which elements of an image each output position sees, by number.

numbers(...) is [*positions, elements of a patch]; -1 stands for padding. A patch runs channel by channel, (C, *kernel), over an
image [C, *space]; channels_last, (*kernel, C) over [*space, C], so that what lies together is copied together.
"""

from dataclasses import dataclass

import numpy as np

from fewbit.errors import FewbitError, Unsupported


@dataclass(frozen=True)
class Window:
    """Of a Conv: kernel, strides, dilations [spatial dimensions]; pads [before ..., after ...]."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]


def window(attributes: dict, kernel: tuple[int, ...], name: str) -> Window:
    """From a Conv's attributes; refuses what is not supported."""
    n = len(kernel)
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise FewbitError(f"node {name}: a Conv with auto_pad {attributes['auto_pad']} is not supported; export explicit pads")
    if attributes.get("group", 1) != 1:
        raise Unsupported(f"node {name}: a Conv with groups is not run by the engine")
    ones = (1,) * n
    strides, dilations = (tuple(attributes.get(k) or ones) for k in ("strides", "dilations"))
    return Window(kernel, strides, dilations, tuple(attributes.get("pads") or (0,) * (2 * n)))


def numbers(shape: tuple[int, ...], w: Window, channels_last: bool) -> np.ndarray:
    """shape of the image without the batch -> int64 [*positions, C * kernel elements]."""
    image = np.arange(int(np.prod(shape))).reshape(shape)
    image = np.moveaxis(image, -1, 0) if channels_last else image
    n = len(w.kernel)
    image = np.pad(image, [(0, 0), *zip(w.pads[:n], w.pads[n:], strict=True)], constant_values=-1)
    spans = [(k - 1) * d + 1 for k, d in zip(w.kernel, w.dilations, strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(image, spans, tuple(range(1, n + 1)))  # [C, *starts, *spans]
    views = views[(slice(None), *(slice(None, None, s) for s in w.strides), *(slice(None, None, d) for d in w.dilations))]
    order = [*range(1, n + 1), *range(n + 1, 2 * n + 1)]
    order = [*order, 0] if channels_last else [*order[:n], 0, *order[n:]]
    patches = views.transpose(order)
    return patches.reshape(*patches.shape[:n], -1)


def gather(x: np.ndarray, w: Window, fill: int, channels_last: bool) -> np.ndarray:
    """x [n, ...] -> [n, *positions, elements of a patch]."""
    which = numbers(x.shape[1:], w, channels_last)
    flat = np.concatenate([x.reshape(len(x), -1), np.full((len(x), 1), fill, x.dtype)], axis=1)
    return flat[:, which]
