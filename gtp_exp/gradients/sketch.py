"""Draw sketches: seeded random linear maps that keep inner products, in expectation, in far fewer dimensions.

Every parameter has its own part of the map, drawn on the CPU from (seed, checkpoint, parameter name): the
numbers do not depend on device, process, batch or the order in which parameters arrive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch

from gtp_exp.decode import check_fields
from gtp_exp.errors import UserError

FEW = 2048  # values of a block, of all rows: with fewer a processor is quicker value by value


class SketchKind(Enum):
    """Says how the random map is drawn."""

    COUNTSKETCH = "countsketch"  # sparse Johnson-Lindenstrauss, `nonzeros` entries per input coordinate
    RADEMACHER = "rademacher"  # dense random signs
    NONE = "none"  # the gradient itself, parameters in named_parameters order


@dataclass(frozen=True)
class Sketch:
    """Holds the sketch node of the gradients group: which map, and into how many dimensions."""

    kind: SketchKind = SketchKind.COUNTSKETCH
    dim: int = 8192  # output dimension; not used by kind none
    nonzeros: int = 1  # 1 to 8, must divide dim; used by countsketch only

    def __post_init__(self) -> None:
        check_fields(self, "sketch")
        if self.kind is SketchKind.NONE:
            return
        if self.dim < 1:
            raise UserError(f"sketch.dim={self.dim} must be at least 1; 8192 is usual")
        if self.kind is SketchKind.COUNTSKETCH and not 1 <= self.nonzeros <= 8:
            raise UserError(
                f"sketch.nonzeros={self.nonzeros} must lie between 1 and 8; 1 is fastest and as good"
            )
        if self.kind is SketchKind.COUNTSKETCH and self.dim % self.nonzeros:
            raise UserError(
                f"sketch.nonzeros={self.nonzeros} must divide sketch.dim={self.dim}: each has its own "
                "equal block of the output"
            )


class Projection(Protocol):
    """Maps whole gradients linearly to fewer dimensions, parameter by parameter."""

    @property
    def dim(self) -> int:
        """Return the output dimension."""
        ...

    def empty(self, rows: int) -> torch.Tensor:
        """Return an accumulator of zeros for `add`."""
        ...

    def add(self, name: str, gradients: torch.Tensor, into: torch.Tensor) -> None:
        """Add the image of one parameter's gradients, [b, p] float32, to the accumulator."""
        ...

    def finish(self, accumulated: torch.Tensor) -> torch.Tensor:
        """Return the sketches [b, dim] float32."""
        ...


def sketch_seed(seed: int, checkpoint: int, name: str) -> int:
    """Return a 63-bit seed: another for every checkpoint and parameter, the same for pool and target."""
    digest = hashlib.sha256(f"gtp_exp sketch/{seed}/{checkpoint}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def make_projection(
    sketch: Sketch, sizes: Mapping[str, int], *, seed: int, checkpoint: int, device: torch.device | str
) -> Projection:
    """Draw the map of a checkpoint. sizes: number of values of each trainable parameter, in order."""
    if sketch.kind is SketchKind.NONE:
        return Identity(sizes, device)
    seeds = {name: sketch_seed(seed, checkpoint, name) for name in sizes}
    if sketch.kind is SketchKind.RADEMACHER:
        return Rademacher(sketch.dim, sizes, seeds, device)
    return CountSketch(sketch, sizes, seeds, device)


def output_dim(sketch: Sketch, sizes: Mapping[str, int]) -> int:
    """Return the dimension of the sketches of gradients of these sizes."""
    return sum(sizes.values()) if sketch.kind is SketchKind.NONE else sketch.dim


class Identity:
    """Leaves the gradient as it is: all parameters' values, one behind the other."""

    def __init__(self, sizes: Mapping[str, int], device: torch.device | str) -> None:
        self._start, self._device, self.dim = {}, device, 0
        for name, size in sizes.items():
            self._start[name] = self.dim
            self.dim += size

    def empty(self, rows: int) -> torch.Tensor:
        """Return an accumulator of zeros."""
        return torch.zeros(rows, self.dim, device=self._device)

    def add(self, name: str, gradients: torch.Tensor, into: torch.Tensor) -> None:
        """Add the image of one parameter's gradients [b, p] to the accumulator."""
        start = self._start[name]
        into[:, start : start + gradients.shape[1]] = gradients

    def finish(self, accumulated: torch.Tensor) -> torch.Tensor:
        """Return the sketches [b, dim]."""
        return accumulated


class CountSketch:
    """Adds signed coordinates into buckets: y[h(j)] += sign(j) x[j] (Charikar et al. 2002).

    With s nonzeros, s such maps go into s parts of w = dim / s buckets, each scaled by 1 / sqrt(s) (the block
    construction of Kane & Nelson, arXiv 1012.1577).

    The hash h cuts a parameter into blocks of w neighbouring coordinates, and turns each by a shift of its
    own, drawn at random: h(j) = (j + shift(block of j)) mod w. Two coordinates of different blocks share a
    bucket with probability 1 / w, which is all that the variance depends on; two of one block never do. So a
    block is added as a whole: a sum of neighbours, in a fixed order, where a scatter would jump.

        E <Sx, Sy> = <x, y>
        Var <Sx, Sy> = (|x|^2 |y|^2 + <x, y>^2 - sum_b (|x_b|^2 |y_b|^2 + <x_b, y_b>^2)) / dim
        with x_b the part of x in block b, for every s
    """

    def __init__(
        self,
        sketch: Sketch,
        sizes: Mapping[str, int],
        seeds: Mapping[str, int],
        device: torch.device | str,
    ) -> None:
        self.dim, self._nonzeros, self._device = sketch.dim, sketch.nonzeros, device
        self._width = sketch.dim // sketch.nonzeros
        self._shifts: dict[str, list[list[int]]] = {}  # [s, blocks]
        self._signs = {}  # [s, p]
        for name, size in sizes.items():
            generator = torch.Generator().manual_seed(seeds[name])
            of_blocks = (sketch.nonzeros, -(-size // self._width))
            self._shifts[name] = torch.randint(0, self._width, of_blocks, generator=generator).tolist()
            bits = torch.randint(0, 2, (sketch.nonzeros, size), generator=generator)
            self._signs[name] = (2 * bits - 1).to(device, torch.float32)

    def empty(self, rows: int) -> torch.Tensor:
        """Return an accumulator of zeros: twice as wide as the sketch, so that no block has to be cut at its
        end."""
        return torch.zeros(self._nonzeros, rows, 2 * self._width, device=self._device)

    def add(self, name: str, gradients: torch.Tensor, into: torch.Tensor) -> None:
        """Add the image of one parameter's gradients [b, p] to the accumulator."""
        if into.device.type != "cpu":
            add = _add_at_once
        else:  # the same sums either way
            add = _add_one_by_one if len(gradients) * self._width < FEW else _add_blocks
        for sums, shifts, signs in zip(into, self._shifts[name], self._signs[name], strict=True):
            add(gradients, signs, shifts, sums)

    def finish(self, accumulated: torch.Tensor) -> torch.Tensor:
        """Return the sketches [b, dim]."""
        first, beyond = accumulated.split(self._width, dim=2)
        return (first + beyond).mul_(self._nonzeros**-0.5).transpose(0, 1).flatten(1)


def _add_blocks(gradients: torch.Tensor, signs: torch.Tensor, shifts: list[int], into: torch.Tensor) -> None:
    """Add every block, with its signs, at the place that its shift says: one step over the values, which a
    processor's caches like. gradients: [b, p]; signs: [p]; into: [b, 2 w]."""
    width = into.shape[1] // 2
    starts = range(0, gradients.shape[1], width)
    for start, shift in zip(starts, shifts, strict=True):
        block = gradients[:, start : start + width]
        into[:, shift : shift + block.shape[1]].addcmul_(block, signs[start : start + width])


def _add_one_by_one(
    gradients: torch.Tensor, signs: torch.Tensor, shifts: list[int], into: torch.Tensor
) -> None:
    """Add every value by itself, in the same order: a step for each of many small blocks takes longer."""
    width = into.shape[1] // 2
    buckets = (torch.arange(width) + torch.tensor(shifts)[:, None]).flatten()[: gradients.shape[1]]
    into.scatter_add_(1, buckets.expand_as(gradients), gradients * signs)


def _add_at_once(gradients: torch.Tensor, signs: torch.Tensor, shifts: list[int], into: torch.Tensor) -> None:
    """Add all blocks in a number of steps that does not grow with theirs: a GPU would wait for each."""
    rows, width = len(gradients), into.shape[1] // 2
    missing = len(shifts) * width - gradients.shape[1]
    blocks = torch.nn.functional.pad(gradients * signs, (0, missing)).view(rows, len(shifts), width)
    buckets = torch.arange(width, device=into.device)
    source = (buckets - torch.tensor(shifts, device=into.device)[:, None]) % width
    into[:, :width] += blocks.gather(2, source.expand(rows, -1, -1)).sum(dim=1)


class Rademacher:
    """Multiplies with dense signs / sqrt(dim), as TRAK and LESS do.

    The matrix (dim x all parameters) is never stored: it is drawn again for each batch, in blocks of fixed
    size so that neither memory nor batch size enters the numbers.
    """

    _BLOCK = 1024  # input coordinates drawn at a time

    def __init__(
        self, dim: int, sizes: Mapping[str, int], seeds: Mapping[str, int], device: torch.device | str
    ) -> None:
        self.dim, self._sizes, self._seeds, self._device = dim, sizes, seeds, device

    def empty(self, rows: int) -> torch.Tensor:
        """Return an accumulator of zeros."""
        return torch.zeros(rows, self.dim, device=self._device)

    def add(self, name: str, gradients: torch.Tensor, into: torch.Tensor) -> None:
        """Add the image of one parameter's gradients [b, p] to the accumulator."""
        generator = torch.Generator().manual_seed(self._seeds[name])
        for start in range(0, self._sizes[name], self._BLOCK):
            block = gradients[:, start : start + self._BLOCK]
            signs = _random_signs(block.shape[1], self.dim, generator).to(gradients.device)
            into.addmm_(block, signs.float())

    def finish(self, accumulated: torch.Tensor) -> torch.Tensor:
        """Return the sketches [b, dim]."""
        return accumulated * self.dim**-0.5


def _random_signs(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """Return int8 [rows, columns] of +1 and -1, from the 64 bits of each random word: a draw per sign would
    cost more than the product it serves."""
    words = torch.empty(rows, -(-columns // 64), dtype=torch.long).random_(
        -(2**63), None, generator=generator
    )
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
    bits = (words.view(torch.uint8).unsqueeze(-1) & powers).bool().view(rows, -1)[:, :columns]
    return bits.to(torch.int8).mul_(2).sub_(1)
