"""Copies one member of a RACE model into the e3nn reference: index bookkeeping, kept apart
from the equations.
"""

from typing import Any

import torch
from e3nn import o3
from torch import Tensor

from race.model.irreps import path_irreps


def keyed_paths(irreps_in: o3.Irreps, lmax: int, target: o3.Irreps) -> list[tuple[Any, ...]]:
    """RACE's paths named as the reference names them; identity paths come first."""
    paths = path_irreps(irreps_in, lmax, target)
    n_identity = sum(ir in target for _, ir in irreps_in)
    return [
        ("identity" if n < n_identity else "product", irreps_in[k].ir, l2, out)
        for n, (k, l2, out) in enumerate(paths)
    ]


def set_linear(linear: o3.Linear, wanted: dict[tuple[int, o3.Irrep], Tensor]) -> None:
    """Fills an o3.Linear; `wanted` maps (input slot, output irrep) to the effective matrix
    [mul_in, mul_out].
    """
    for index, instruction, view in linear.weight_views(yield_instruction=True):
        del index
        matrix = wanted.get((instruction.i_in, linear.irreps_out[instruction.i_out].ir))
        view.zero_() if matrix is None else view.copy_(matrix / instruction.path_weight)


def set_product(
    product: o3.FullyConnectedTensorProduct, wanted: dict[tuple[o3.Irrep, o3.Irrep], Tensor]
) -> None:
    """Fills a fully connected product; keys (irrep of input 1, of input 2), values the
    effective [mul1, mul2, mul_out].
    """
    for index, instruction, view in product.weight_views(yield_instruction=True):
        del index
        a, b = product.irreps_in1[instruction.i_in1].ir, product.irreps_in2[instruction.i_in2].ir
        ir_out = product.irreps_out[instruction.i_out].ir
        tensor = wanted.get((a, b))
        if tensor is None:
            view.zero_()
            continue
        # e3nn multiplies by path_weight and by w3j(l, 0, l) = delta / sqrt(2l + 1)
        view.copy_(tensor / (instruction.path_weight * ir_out.dim**-0.5))


def flat_matrices(weight: Tensor, shapes: list[tuple[int, int]]) -> list[Tensor]:
    """Matrices of these shapes, cut from one row of numbers."""
    parts = weight.split([a * b for a, b in shapes], dim=-1)
    return [
        part.reshape(*part.shape[:-1], *shape) for part, shape in zip(parts, shapes, strict=True)
    ]


def gate_columns(gated: o3.Irreps, irreps_out: o3.Irreps) -> tuple[list[int], int]:
    """Where the reference, which gates every hidden irrep, has the gates of those that RACE
    keeps; and how many it has.
    """
    kept = {ir for _, ir in irreps_out}
    columns, start = [], 0
    for mul, ir in gated:
        columns += list(range(start, start + mul)) if ir in kept else []
        start += mul
    return columns, start


def spread(matrix: Tensor, columns: list[int], width: int) -> Tensor:
    """[.., mul_in, K] -> [.., mul_in, width], zero in other columns."""
    out = matrix.new_zeros(*matrix.shape[:-1], width)
    out[..., columns] = matrix
    return out


def copy_power(power: Any, layer: Any, m: int) -> None:
    """Weights of products: zero where RACE has no such path."""
    order_of: dict[tuple[Any, ...], Tensor] = {}
    offsets: dict[int, o3.Irrep] = {}
    start = 0
    for _, ir in layer.irreps_a:
        offsets[start] = ir
        start += ir.dim
    effective = layer.weight_power[m] * layer.power_norm  # [S, P, C]
    for p in range(effective.shape[1]):
        row = layer.power_rows[8 * p : 8 * p + 8]
        a, b, out = (offsets[offset] for offset in row[4:7])
        order_of[row[0], a, b, out] = effective[:, p]
    for keys, weight in zip(power.keys, power.weights, strict=True):
        for k, key in enumerate(keys):
            weight[:, k] = order_of.get(key, torch.zeros(()))


def copy_member(reference: Any, model: Any, m: int) -> None:
    """Gives the reference the weights of member m."""
    config = model.config
    reference.embedding.copy_(model.embedding[m])
    reference.weight_a.copy_(model.weight_a[m])
    scalar = o3.Irrep("0e")
    up = {
        (0, scalar): model.linear_up.weight[m].reshape(model.linear_up.shapes[0])
        * model.linear_up.shapes[0][0] ** -0.5
    }
    for t, (ref, layer) in enumerate(zip(reference.layers, model.layers, strict=True)):
        irreps_out, irreps_g = layer.irreps_out, layer.irreps_g
        order = [ir for _, ir in ref.up.irreps_in]
        set_linear(
            ref.up, {(order.index(ir) if t else slot, ir): w for (slot, ir), w in up.items()}
        )

        # Radial weights and W_down: columns and rows of each path, wherever RACE keeps them.
        for source, sink in zip(layer.radial.weights[:-1], ref.radial[:-1], strict=True):
            sink.copy_(source[m])
        last, down = layer.radial.weights[-1][m], {}
        ref.radial[-1].zero_()
        keys = keyed_paths(irreps_g, config.lmax, layer.irreps_a)
        widths = {ir: mul for mul, ir in irreps_g}
        parts = flat_matrices(layer.linear_down.weight[m], layer.linear_down.shapes)
        matrices = {ir: part for (_, ir), part in zip(layer.irreps_a, parts, strict=True)}
        column, row = 0, {ir: 0 for ir in matrices}
        starts = torch.cumsum(torch.tensor([0, *ref.muls]), 0).tolist()
        for key in keys:
            mul, out = widths[key[1]], key[3]
            slot = ref.keys.index(key)
            ref.radial[-1][:, starts[slot] : starts[slot] + mul] = last[:, column : column + mul]
            fan_in = matrices[out].shape[0]
            down[(slot, out)] = matrices[out][row[out] : row[out] + mul] * fan_in**-0.5
            column, row[out] = column + mul, row[out] + mul
        set_linear(ref.down, down)

        product = flat_matrices(layer.weight_product[m] * layer.product_norm, layer.product_shapes)
        skip = flat_matrices(layer.weight_skip[m] * layer.skip_norm, layer.skip_shapes)
        if layer.n_gates:  # their last matrix makes the gates
            columns = gate_columns(ref.gate.gated, irreps_out)
            set_product(ref.product_gate, {(scalar, scalar): spread(product.pop(), *columns)})
            set_product(
                ref.skip_gate, {(scalar, scalar): spread(skip.pop(), *columns).transpose(0, 1)}
            )
        set_product(
            ref.product,
            {(scalar, ir): w for (_, ir), w in zip(layer.irreps_product, product, strict=True)},
        )
        # [S, mul_in, mul_out]
        set_product(
            ref.skip,
            {
                (ir, scalar): w.transpose(0, 1)
                for (_, ir), w in zip(layer.irreps_skip, skip, strict=True)
            },
        )
        if ref.power is not None:
            copy_power(ref.power, layer, m)

        ref.w1.copy_(layer.readout.w1[m])
        ref.w2.copy_(layer.readout.w2[m])
        if ref.wt is not None:
            ref.wt.zero_() if layer.readout.wt.shape[1] == 0 else ref.wt.copy_(layer.readout.wt[m])
        if layer.linear_up_next is not None:
            linear = layer.linear_up_next
            parts = flat_matrices(linear.weight[m], linear.shapes)
            up = {
                (0, ir): w * w.shape[0] ** -0.5
                for (_, ir), w in zip(irreps_out, parts, strict=True)
            }
