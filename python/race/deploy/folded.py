"""A trained model as it is deployed: segments between which domains exchange rows, each with
its transpose.

Nothing here records autograd. Forces are the explicit transpose, segment by segment in
reverse, so that one step is a fixed sequence of operators.

Members that differ in the last maps of their readouts alone share a trunk (last-layer
posteriors): the convolutions and their transposes are those of T <= M trunks. Then the
mean forces cost T members, and members' forces M / T transposes after one forward pass.
"""

# mypy: disable-error-code="operator"
# (TorchScript iterates over plain ModuleLists, whose items have no type.)
import torch
from e3nn import o3
from torch import Tensor, nn

from race.deploy.chain import Chain
from race.deploy.folded_layer import FoldedLayer
from race.deploy.readout import (
    node_energy_fused,
    node_energy_vjp_aten,
    node_energy_vjp_fused,
)
from race.model.edges import EdgeBasis
from race.model.fused import HAS_FUSED
from race.model.grade import Grade
from race.model.heads import ForceCovariance
from race.model.layer import Layer, is_last_layer
from race.model.outputs import Outputs
from race.model.race import RACE
from race.model.radial import Radial


def count_trunks(model: RACE) -> int:
    """T: member m has the trunk of member m % T, bit for bit. The weights say so, not the
    posterior's name.
    """
    shared = [p.detach() for name, p in model.named_parameters() if not is_last_layer(name)]
    M = model.n_members
    return next(
        T
        for T in range(1, M + 1)
        if M % T == 0 and all(torch.equal(p[T:], p[: M - T]) for p in shared)
    )


class FoldedRACE(Outputs):
    """The segments of a model, without gradients: what an artifact holds. Shapes and units
    as in cpp/include/race/model.h.
    """

    __constants__ = ["fused", "has_leverage"]
    scale: Tensor
    atomic_energies: Tensor
    g_rows: Tensor

    def __init__(self, model: RACE):
        """A copy in float64."""
        super().__init__(model.config, model.constants, torch.float64)
        n_trunks = count_trunks(model)
        twin = RACE(
            model.config.model_copy(update={"n_members": n_trunks}), model.constants, torch.float64
        )
        own = dict(model.named_parameters())  # member axis first
        twin.load_state_dict(
            {name: p[:n_trunks] if name in own else p for name, p in model.state_dict().items()}
        )
        twin.requires_grad_(False)
        self.edge_basis = twin.edge_basis
        a = twin.species_features()
        # [S, M * F]
        embedding = twin.embedding.transpose(0, 1).reshape(twin.embedding.shape[1], -1)
        self.register_buffer("g_rows", twin.linear_up(embedding))
        trained = [layer for layer in twin.layers if isinstance(layer, Layer)]
        readouts = [layer.readout for layer in model.layers if isinstance(layer, Layer)]
        layers: list[FoldedLayer] = []
        irreps_h = o3.Irreps([])
        for t, layer in enumerate(trained):
            following = trained[t + 1] if t + 1 < self.n_layers else None
            layers.append(
                FoldedLayer(
                    layer,
                    readouts[t],
                    a,
                    embedding if t == 0 else embedding[:0],
                    irreps_h,
                    following,
                )
            )
            irreps_h = layers[t].irreps_h
        self.layers = nn.ModuleList(layers)
        self.fused, self.n_trunks = True, n_trunks
        self.leverage.load_state_dict(twin.leverage.state_dict())
        self.of_training: nn.Module = Grade()  # or that of a mixture
        self.n_hidden = n_trunks * trained[-1].readout.w1.shape[2]

    @torch.jit.export
    def prepare(self) -> None:
        """Before anything else, once dtype and device are known."""
        for layer in self.layers:
            layer.prepare()

    @torch.jit.export
    def edges(self, edge_vector: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Segment: edge vectors [E, 3] -> what `edge_basis` gives of them."""
        return self.edge_basis(edge_vector)

    @torch.jit.export
    def edges_vjp(
        self,
        edge_vector: Tensor,
        radial_grad: Tensor,
        sh_grad: Tensor,
        bar_radial: Tensor,
        bar_sh: Tensor,
    ) -> Tensor:
        """Transpose of `edges`."""
        return self.edge_basis.vjp(edge_vector, radial_grad, sh_grad, bar_radial, bar_sh)

    @torch.jit.export
    def embed(self, species: Tensor) -> Tensor:
        """species [n] -> g_0 [n, dim_g]: a function of the species, so ghosts need no exchange."""
        return self.g_rows.index_select(0, species)

    @torch.jit.export
    def layer(
        self,
        t: int,
        h: Tensor,
        g: Tensor,
        radial: Tensor,
        sh: Tensor,
        sender: Tensor,
        row_ptr: Tensor,
        species: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Segment: layer t, from the features of all atoms to those of the receivers."""
        result = (h, g, h, h)
        for k, layer in enumerate(self.layers):
            if k == t:
                result = layer(h, g, radial, sh, sender, row_ptr, species)
        if self.has_leverage:
            new, g_next, out, z = result
            hidden = z.narrow(1, 0, self.n_hidden)
            out = self.with_leverage(out, hidden, species, t == self.n_layers - 1)
            result = (new, g_next, out, z)
        return result

    @torch.jit.export
    def layer_vjp(
        self,
        t: int,
        g: Tensor,
        radial: Tensor,
        sh: Tensor,
        sender: Tensor,
        row_ptr: Tensor,
        species: Tensor,
        z: Tensor,
        bar_energy: Tensor,
        bar_new: Tensor,
        bar_g_next: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Transpose of `layer`."""
        result = (g, g, g, g)
        for k, layer in enumerate(self.layers):
            if k == t:
                result = layer.vjp(
                    g, radial, sh, sender, row_ptr, species, z, bar_energy, bar_new, bar_g_next
                )
        return result

    @torch.jit.export
    def edges_jvp(self, edge_vector: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        """Tangent of `edges`."""
        return self.edge_basis.jvp(edge_vector, rate)

    @torch.jit.export
    def layer_jvp(
        self,
        t: int,
        dh: Tensor,
        dg: Tensor,
        dradial: Tensor,
        dsh: Tensor,
        g: Tensor,
        radial: Tensor,
        sh: Tensor,
        sender: Tensor,
        row_ptr: Tensor,
        species: Tensor,
        z: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Tangent of `layer`."""
        result = (dh, dg)
        for k, layer in enumerate(self.layers):
            if k == t:
                result = layer.jvp(dh, dg, dradial, dsh, g, radial, sh, sender, row_ptr, species, z)
        return result

    @torch.jit.export
    def layer_power(
        self,
        t: int,
        dg: Tensor,
        radial: Tensor,
        sh: Tensor,
        sender: Tensor,
        row_ptr: Tensor,
        species: Tensor,
        z: Tensor,
        bar_energy: Tensor,
        bar_new: Tensor,
        bar_g_next: Tensor,
    ) -> Tensor:
        """The power that each edge of layer t passes on, for the heat flux."""
        result = dg
        for k, layer in enumerate(self.layers):
            if k == t:
                result = layer.power(
                    dg, radial, sh, sender, row_ptr, species, z, bar_energy, bar_new, bar_g_next
                )
        return result

    @torch.jit.export
    def readout(self, out: Tensor, species: Tensor) -> Tensor:
        """Segment: energies of atoms [n, M], eV."""
        if self.fused:
            return node_energy_fused(out, species, self.scale, self.atomic_energies)
        else:
            return self.node_energy(out, species)

    @torch.jit.export
    def readout_vjp(self, species: Tensor, bar_node_energy: Tensor) -> Tensor:
        """Adjoint of the energy channel of every layer's out, [n, M], from that of the
        members' total energies, float64 [M].
        """
        if self.fused:
            return node_energy_vjp_fused(species, self.scale, bar_node_energy, self.g_rows)
        else:
            return node_energy_vjp_aten(species, self.scale, bar_node_energy, self.g_rows)

    @torch.jit.export
    def uncertainty(self, out: Tensor, species: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Segment: what the heads tell of the noise, see `Outputs.moments`."""
        return self.moments(out)

    @torch.jit.export
    def virial_cov(self, out: Tensor) -> Tensor:
        """Segment: noise of the virial [6, 6], eV^2."""
        return self.virial_noise(out)

    @torch.jit.export
    def grade(self, z: Tensor, species: Tensor) -> Tensor:
        """How unlike the training set's atoms are, from the last layer's z [n, T * H]: [n]."""
        hidden = z.narrow(1, 0, self.n_hidden)  # what else z holds is of products and gates
        return self.of_training(hidden, species)

    @torch.jit.unused
    def set_fused(self, fused: bool) -> "FoldedRACE":
        """Compiled operators (race::conv, race::linear, ..), or stock torch operations
        only. In place.
        """
        for module in self.modules():
            if isinstance(
                module, (Chain, EdgeBasis, FoldedLayer, FoldedRACE, ForceCovariance, Radial)
            ):
                module.fused = fused and HAS_FUSED
        return self
