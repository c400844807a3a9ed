"""R for the merge and unmerge of PEFT's bitsandbytes layers: R W and R^-1 W in one pass, without a D x D matrix."""

import functools

import torch
from torch import Tensor

from ... import road_merge, road_unmerge


def delta_weight(original):
    @functools.wraps(original)
    def _get_delta_weight(variant, group_size, road_theta, road_alpha):
        adapter = {"theta": road_theta, "alpha": road_alpha, "variant": variant, "group_size": group_size}
        return RoadMatrix(original, adapter)

    return _get_delta_weight


class RoadMatrix:
    """The matrix as torch.matmul and torch.linalg.inv use it. For anything else it becomes PEFT's dense matrix."""

    def __init__(self, make_dense, adapter: dict, inverse: bool = False):
        self.make_dense, self.adapter, self.inverse = make_dense, adapter, inverse
        self.dtype, self.device = adapter["theta"].dtype, adapter["theta"].device

    def to(self, *args, **kwargs) -> "RoadMatrix":
        """Itself: the arithmetic is float32 or wider and the product has the dtype of the other factor."""
        return self

    def dense(self) -> Tensor:
        a = self.adapter
        matrix = self.make_dense(a["variant"], a["group_size"], a["theta"], a["alpha"])
        return torch.linalg.inv(matrix.float()).to(matrix.dtype) if self.inverse else matrix

    def __getattr__(self, name):
        return getattr(self.dense(), name)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        first, *rest = args
        if isinstance(first, cls) and not kwargs:
            if function is torch.linalg.inv and not rest:
                return cls(first.make_dense, first.adapter, not first.inverse)
            if function is torch.matmul and type(rest[0]) is Tensor and rest[0].dim() <= 2:
                return first._times(rest[0])
        return function(*(a.dense() if isinstance(a, cls) else a for a in args), **(kwargs or {}))

    def _times(self, other: Tensor) -> Tensor:
        columns = other if other.dim() == 2 else other[:, None]
        if not self.inverse:
            product, _ = road_merge(columns, None, **self.adapter)
        else:
            try:
                product, _ = road_unmerge(columns, None, **self.adapter)
            except ValueError as error:  # what torch.linalg.inv raises for a singular block
                raise torch.linalg.LinAlgError(str(error)) from error
        return product if other.dim() == 2 else product[:, 0]
