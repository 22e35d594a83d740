"""Wings for tests of the model floor: one that only stores what the loader hands it, one that wraps a real one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bitnet_model.batch import ForwardBatch
from bitnet_model.model import Layer
from bitnet_model.ops import Ops, StepFunction
from bitnet_model.plan import ModelPlan


@dataclass
class StoringOps:
    """Keeps exactly what it is given: packed segments and tables. Has no arithmetic."""

    packed: list[list[tuple[Tensor, Tensor]]] = field(default_factory=list)
    tables: list[tuple[Tensor, bool, str | None]] = field(default_factory=list)
    num_positions: int = 0

    def pack(self, segments: Sequence[tuple[Tensor, Tensor]]) -> object:
        self.packed.append(list(segments))
        return self.packed[-1]

    def pack_table(self, weight: Tensor, *, embedding: bool, head_dtype: str | None) -> object:
        self.tables.append((weight, embedding, head_dtype))
        return self.tables[-1]

    def rope_tables(self, head_dim: int, theta: float, scaling: None, num_positions: int) -> object:
        self.num_positions = num_positions
        return "rope"

    def compile(self, plan: ModelPlan) -> None:
        return None

    def compile_draw(self, plan: ModelPlan) -> None:
        return None

    def compile_decode(self, plan: ModelPlan) -> None:
        return None

    def memory_bytes(self, handle: Any) -> int:
        if isinstance(handle, list):
            return sum(planes.nbytes + scale.nbytes for planes, scale in handle)
        return handle[0].nbytes if isinstance(handle, tuple) else 0


class WholeStep:
    """A wing that executes a whole step from the plan alone, and counts how often it was asked to."""

    def __init__(self, ops: Ops) -> None:
        self._ops = ops
        self.num_steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def compile(self, plan: ModelPlan) -> StepFunction | None:
        layers = [Layer(self._ops, plan, layer, index) for index, layer in enumerate(plan.layers)]

        def step(batch: ForwardBatch, cache: Any) -> Tensor:
            self.num_steps += 1
            x = self._ops.embed(plan.embedding, batch.token_ids)
            for layer in layers:
                x = layer.forward(x, batch, cache)
            return x[batch.logit_rows]

        return step
