"""Models of several sizes as members of one network: each is padded with zeros to the
smallest architecture that contains all.

A model is a set of named matrices between channels, such as "layer 1, skip, 1o to 1o". A
larger model has the same, with more rows and columns, and further ones. Where these are
zero, what is new stays zero and adds nothing: channels (SiLU and the gate keep zeros),
irreps, paths of the convolution, products, and layers at the end. What a model uses is

    factor * weight,

where the factor holds all that its size decides: fan-in, the share of a layer in the mean
over layers, the neighbour count, the energy scale. So the same function has the weights

    weight' = weight * factor / factor'    in the corner of each matrix, 0 elsewhere.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from e3nn import o3
from torch import Tensor

from race.config import ModelConfig
from race.model.irreps import path_irreps, unique_irreps
from race.model.layer import Layer
from race.model.linear import Linear
from race.model.race import RACE

WIDTHS = ("n_layers", "lmax", "correlation", "n_features", "readout_hidden")
SIZES = ("irreps_hidden", "radial_mlp", *WIDTHS)  # options in which padded models may differ


@dataclass(frozen=True)
class Matrix:
    """weight: view [n_members, ..] of a parameter, the other axes being channels or species;
    the model uses factor * weight.
    """

    weight: Tensor
    factor: float


Named = Iterator[tuple[tuple[object, ...], Matrix]]


def containing(configs: Sequence[ModelConfig]) -> ModelConfig:
    """The first architecture, grown to the smallest that contains all."""
    sizes: dict[str, object] = {name: max(getattr(c, name) for c in configs) for name in WIDTHS}
    sizes["radial_mlp"] = [
        max(widths) for widths in zip(*(c.radial_mlp for c in configs), strict=True)
    ]
    channels: dict[o3.Irrep, int] = {}
    for config in configs:
        for mul, ir in unique_irreps(config.irreps_hidden):
            channels[ir] = max(mul, channels.get(ir, 0))
    irreps = unique_irreps(o3.Irreps([(mul, ir) for ir, mul in channels.items()]))
    if irreps != unique_irreps(configs[0].irreps_hidden):
        sizes["irreps_hidden"] = str(irreps)
    return configs[0].model_copy(update=sizes)


def fill(whole: RACE, models: Sequence[RACE]) -> None:
    """Makes the members of `models`, in order, those of `whole`, whose architecture contains
    theirs. In place.
    """
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.zero_()
        targets, first = dict(matrices(whole)), 0
        for model in models:
            members = slice(first, first + model.n_members)
            for name, matrix in matrices(model):
                target = targets[name]
                corner = (members, *map(slice, matrix.weight.shape[1:]))
                target.weight[corner] = matrix.weight * (matrix.factor / target.factor)
            first = members.stop


def matrices(model: RACE) -> Named:
    """Every weight of a model, once, by names that models of all sizes share."""
    config = model.config
    yield ("embedding",), Matrix(model.embedding, 1.0)
    yield ("a",), Matrix(model.weight_a, config.n_features**-0.5)
    up: Linear | None = model.linear_up
    for t, layer in enumerate(model.layers):
        assert isinstance(layer, Layer) and up is not None
        of_layer = [
            *zip([("up", ir) for _, ir in layer.irreps_g], flat(up.weight, up.shapes), strict=True),
            *_convolution(layer, config.lmax),
            *_powers(layer),
            *_update(layer, config.n_features),
            *_readout(layer, model.n_layers, model.constants.scale[0]),
        ]
        for name, matrix in of_layer:
            yield (t, *name), matrix
        up = layer.linear_up_next


def flat(weight: Tensor, shapes: Sequence[tuple[int, int]], factor: float = 1.0) -> list[Matrix]:
    """The matrices that lie one after the other in the last axis, each over the root of its
    fan-in.
    """
    parts = weight.split([rows * columns for rows, columns in shapes], dim=-1)
    return [
        Matrix(part.unflatten(-1, shape), factor * shape[0] ** -0.5)
        for part, shape in zip(parts, shapes, strict=True)
    ]


def _convolution(layer: Layer, lmax: int) -> Named:
    """Radial weights and W_down, path by path."""
    radial = layer.radial
    *hidden, last = [Matrix(*pair) for pair in zip(radial.weights, radial.norms, strict=True)]
    for k, matrix in enumerate(hidden):
        yield ("radial", k), matrix
    # Where powers of A are taken, A itself has its size
    size = layer.power_scale() if layer.correlation > 1 else 1.0
    down = flat(layer.linear_down.weight, layer.linear_down.shapes, size)
    into = {ir: matrix for (_, ir), matrix in zip(layer.irreps_a, down, strict=True)}
    seen: Counter[object] = Counter()  # g itself has the name of its product with Y_0
    column, row = 0, Counter[o3.Irrep]()
    for k, degree, out in path_irreps(layer.irreps_g, lmax, layer.irreps_a):
        mul, source = layer.irreps_g[k]
        path = (source, degree, out)
        weight = last.weight[..., column : column + mul]
        yield ("radial", *path, seen[path]), Matrix(weight, last.factor)
        weight = into[out].weight[:, row[out] : row[out] + mul]
        yield ("down", *path, seen[path]), Matrix(weight, into[out].factor)
        seen[path] += 1
        column += mul
        row[out] += mul


def _powers(layer: Layer) -> Named:
    """Weights of the products of A."""
    if layer.correlation == 1:
        return
    irreps, at = {}, 0
    for _, ir in layer.irreps_a:
        irreps[at] = ir
        at += ir.dim
    for p, norm in enumerate(layer.power_norm.flatten().tolist()):
        order, _, _, _, *offsets, _ = layer.power_rows[8 * p : 8 * p + 8]
        name = ("power", order, *(irreps[offset] for offset in offsets))
        yield name, Matrix(layer.weight_power[:, :, p], norm)


def _update(layer: Layer, n_features: int) -> Named:
    """W_prod and W_skip; what they give the gates, by the irrep that is gated."""
    size = 1.0 if layer.correlation > 1 else 1.0 / layer.avg_num_neighbors
    product = flat(layer.weight_product, layer.product_shapes, size * n_features**-0.5)
    skip = flat(layer.weight_skip, layer.skip_shapes)
    gated = [(mul, ir) for mul, ir in layer.irreps_out if layer.gated and ir != o3.Irrep("0e")]
    for name, found, irreps in (
        ("product", product, layer.irreps_product),
        ("skip", skip, layer.irreps_skip),
    ):
        if gated:
            gates = found.pop()
            weights = gates.weight.split([mul for mul, _ in gated], dim=-1)
            for (_, ir), weight in zip(gated, weights, strict=True):
                yield (name, "gate", ir), Matrix(weight, gates.factor)
        for (_, ir), matrix in zip(irreps, found, strict=True):
            yield (name, ir), matrix


def _readout(layer: Layer, n_layers: int, scale: float) -> Named:
    """Energies are summed over layers and scaled, the other channels are averaged."""
    readout = layer.readout
    energy, noise = readout.w2.split([1, readout.n_scalars - 1], dim=-1)
    fan_in = readout.w2.shape[1] ** -0.5
    yield ("w1",), Matrix(readout.w1, readout.w1.shape[1] ** -0.5)
    yield ("energy",), Matrix(energy, fan_in * scale)
    yield ("noise",), Matrix(noise, fan_in / n_layers)
    yield ("tensors",), Matrix(readout.wt, max(readout.wt.shape[1], 1) ** -0.5 / n_layers)
