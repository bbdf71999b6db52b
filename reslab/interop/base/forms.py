"""Forms: how a tensor of theirs differs from parameters of ours."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class AsIs:
    """One tensor, the same on both sides; heads of ours may be joined in theirs."""

    def shape(self, ours: Sequence[Shape]) -> Shape:
        """The shape of their tensor, given those of our parameters."""
        return ours[0]

    def read(self, tensor: np.ndarray, ours: Sequence[Shape]) -> list[np.ndarray]:
        """Our parameters from their tensor."""
        return [tensor.reshape(ours[0])]

    def write(self, parameters: Sequence[np.ndarray]) -> np.ndarray:
        """Their tensor from our parameters."""
        return parameters[0].reshape(self.shape([one.shape for one in parameters]))


@dataclasses.dataclass(frozen=True)
class Vector(AsIs):
    """Biases: ours by head, theirs flat, and of several projections joined.

    Attributes:
      groups: Number of groups of heads; a group has its part of every projection.
    """

    groups: int = 1

    def shape(self, ours: Sequence[Shape]) -> Shape:
        """The sum of the sizes."""
        return (sum(map(math.prod, ours)),)

    def read(self, tensor: np.ndarray, ours: Sequence[Shape]) -> list[np.ndarray]:
        """Splits a vector."""
        ends = np.cumsum([math.prod(one) // self.groups for one in ours])[:-1]
        parts = np.split(tensor.reshape(self.groups, -1), ends, axis=1)
        return [part.reshape(one) for part, one in zip(parts, ours, strict=True)]

    def write(self, parameters: Sequence[np.ndarray]) -> np.ndarray:
        """Joins the parts."""
        grouped = [one.reshape(self.groups, -1) for one in parameters]
        return np.concatenate(grouped, axis=1).reshape(-1)


@dataclasses.dataclass(frozen=True)
class Kernel(AsIs):
    """Kernels: ours (inputs..., outputs...), theirs a matrix of all of them.

    Attributes:
      inputs: Number of our axes that are contracted.
      is_transposed: Whether their matrix is (outputs, inputs), as in PyTorch's Linear;
        else it is (inputs, outputs).
      swaps_halves: Whether the halves of each head are exchanged: rotation by the
        opposite angle is the same in the other order.
      groups: Number of groups of heads; a group has its part of every projection.
    """

    inputs: int = 1
    is_transposed: bool = True
    swaps_halves: bool = False
    groups: int = 1

    def shape(self, ours: Sequence[Shape]) -> Shape:
        """Inputs and all outputs, or the other way around."""
        rows = math.prod(ours[0][: self.inputs])
        columns = sum(math.prod(one[self.inputs :]) for one in ours)
        return (columns, rows) if self.is_transposed else (rows, columns)

    def read(self, tensor: np.ndarray, ours: Sequence[Shape]) -> list[np.ndarray]:
        """Transposes, splits the outputs, and takes heads apart."""
        matrix = tensor.T if self.is_transposed else tensor
        sizes = [math.prod(one[self.inputs :]) // self.groups for one in ours]
        grouped = matrix.reshape(len(matrix), self.groups, -1)
        parts = np.split(grouped, np.cumsum(sizes)[:-1], axis=2)
        return [
            self._swapped(part.reshape(one))
            for part, one in zip(parts, ours, strict=True)
        ]

    def write(self, parameters: Sequence[np.ndarray]) -> np.ndarray:
        """Joins heads and outputs, and transposes."""
        parts = []
        for one in parameters:
            rows = math.prod(one.shape[: self.inputs])
            parts.append(self._swapped(one).reshape(rows, self.groups, -1))
        matrix = np.concatenate(parts, axis=2) if len(parts) > 1 else parts[0]
        matrix = matrix.reshape(len(matrix), -1)
        return matrix.T if self.is_transposed else matrix

    def _swapped(self, kernel: np.ndarray) -> np.ndarray:
        if not self.swaps_halves:
            return kernel
        return np.roll(kernel, kernel.shape[-1] // 2, axis=-1)


@dataclasses.dataclass(frozen=True)
class Taps(AsIs):
    """Taps of convolutions: ours from the latest input back, theirs the other way.

    Theirs are (channels, 1, taps), with the channels of all convolutions of ours.
    """

    def shape(self, ours: Sequence[Shape]) -> Shape:
        """The sum of the channels, and the taps."""
        return (sum(math.prod(one[1:]) for one in ours), 1, ours[0][0])

    def read(self, tensor: np.ndarray, ours: Sequence[Shape]) -> list[np.ndarray]:
        """Reverses the taps, and splits the channels."""
        ends = np.cumsum([math.prod(one[1:]) for one in ours])[:-1]
        parts = np.split(tensor[:, 0, ::-1].T, ends, axis=1)
        return [part.reshape(one) for part, one in zip(parts, ours, strict=True)]

    def write(self, parameters: Sequence[np.ndarray]) -> np.ndarray:
        """Joins the channels, and reverses the taps."""
        flat = [one.reshape(len(one), -1) for one in parameters]
        return np.concatenate(flat, axis=1)[::-1].T[:, None]


@dataclasses.dataclass(frozen=True)
class Padded(AsIs):
    """One tensor with axes of size 1 around ours.

    Attributes:
      before: Number of such axes before ours.
      after: Number of such axes behind ours.
    """

    before: int = 0
    after: int = 0

    def shape(self, ours: Sequence[Shape]) -> Shape:
        """Our shape with these axes."""
        return (1,) * self.before + tuple(ours[0]) + (1,) * self.after
