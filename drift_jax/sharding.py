"""The device mesh, and the one table that maps logical axes to it.

Everything else in the package names logical axes (`batch`, `embed`, `heads`, ...); only this module
names the mesh axes: `data` (copies of the model), `fsdp` (shards of it, gathered a layer at a time)
and `tensor` (shards of each matrix product).
"""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

LOGICAL_AXES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "layer": None,
}


def make_mesh(*, data: int = 1, fsdp: int = -1, tensor: int = 1) -> Mesh:
    """A mesh over all devices; one of the sizes may be -1, meaning "what is left".

    Raises:
      ValueError: if the sizes do not multiply to the number of devices.
    """
    devices = jax.device_count()
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    known = math.prod(size for size in sizes.values() if size != -1)
    sizes = {axis: devices // known if size == -1 else size for axis, size in sizes.items()}
    if math.prod(sizes.values()) != devices:
        raise ValueError(
            f"mesh {sizes} has {math.prod(sizes.values())} places but there are {devices} devices; "
            "set one of mesh.data, mesh.fsdp, mesh.tensor to -1 to use them all"
        )
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes)
    )


def abstract_mesh(*, data: int, fsdp: int, tensor: int) -> AbstractMesh:
    """A mesh of devices that need not exist, for shapes and places without arrays."""
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    return AbstractMesh(tuple(sizes.values()), tuple(sizes))


def gathered(shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: AbstractMesh) -> int:
    """Numbers that a device computes with: its own and those that the others keep for it.

    Parameters are kept in parts and gathered for the computation; the parts of a matrix product
    stay apart.
    """
    kept = [None if axis == "embed" else axis for axis in axes]
    return math.prod(NamedSharding(mesh, spec(mesh, shape, tuple(kept))).shard_shape(shape))


def batch_devices(mesh: Mesh | AbstractMesh) -> int:
    """Over how many places the rows of a batch are spread."""
    return _extent(mesh, "batch")


def _extent(mesh: Mesh | AbstractMesh, logical: str | None) -> int:
    axes = LOGICAL_AXES[logical] if logical else None
    return math.prod(
        mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ())
    )


def spec(
    mesh: Mesh | AbstractMesh, shape: tuple[int, ...], axes: tuple[str | None, ...]
) -> PartitionSpec:
    """Partition of an array by its logical axes; an axis that does not divide is replicated."""
    return PartitionSpec(
        *(
            LOGICAL_AXES[axis] if axis and size % _extent(mesh, axis) == 0 else None
            for size, axis in zip(shape, axes, strict=True)
        )
    )


def named(
    mesh: Mesh | AbstractMesh, shape: tuple[int, ...], axes: tuple[str | None, ...]
) -> NamedSharding:
    """`spec` on its mesh."""
    return NamedSharding(mesh, spec(mesh, shape, axes))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def one_a_device(mesh: Mesh) -> NamedSharding:
    """As many leading entries as devices, one on each."""
    return NamedSharding(mesh, PartitionSpec(tuple(mesh.axis_names)))


def put_batch(mesh: Mesh, tree: Any, *, axis: int = 0) -> Any:
    """Host arrays to devices, spread over rows: the one place where this happens."""

    def place(leaf: np.ndarray) -> jax.Array:
        axes = tuple("batch" if i == axis else None for i in range(np.ndim(leaf)))
        return jax.device_put(leaf, named(mesh, np.shape(leaf), axes))

    return jax.tree.map(place, tree)
