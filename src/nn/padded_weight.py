"""Matrices with unused rows behind their last, for matrix products of aligned sizes on a GPU.

Rows of 50,257 outputs are not aligned, so that a GPU computes them by a slower kernel than rows of
50,304. The unused rows are in the storage of the weight only: the parameter, its shape, the state
dict and tied weights are what they were. O output features, I input features.
"""

from __future__ import annotations

import torch

ROWS = 64
"""Rows are padded to a multiple of this."""


@torch.inference_mode(False)
@torch.no_grad()
def pad_rows(weight: torch.Tensor) -> None:
    """Move a weight (O, I) to a storage with zeros for the missing rows, in place.

    Its memory is then that of `padded_rows`; the earlier storage is freed if nothing else uses it.
    An inference tensor stays as it is.
    """
    count, inputs = weight.shape
    if count % ROWS and not weight.is_inference():  # such a one cannot be moved
        padded = weight.new_zeros(count + -count % ROWS, inputs)
        padded[:count] = weight
        weight.data = padded[:count]


def padded_rows(weight: torch.Tensor) -> torch.Tensor:
    """Return a view of a weight (O, I) with the unused rows of its storage, or itself without any.

    The products with these rows are to be dropped: their contents are not defined.
    """
    count, inputs = weight.shape
    needed = count + -count % ROWS
    available = weight.untyped_storage().nbytes() // weight.element_size()
    if not weight.is_contiguous() or weight.storage_offset() + needed * inputs > available:
        return weight
    return weight.detach().as_strided((needed, inputs), (inputs, 1))
