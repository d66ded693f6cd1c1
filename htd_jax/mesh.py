"""Devices: one mesh over all devices of all processes, the batch split over it and everything else on each."""
import errno
import functools
import importlib.metadata
import logging
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from htd_jax.errors import UserError, one_line

log = logging.getLogger(__name__)

SILENCE = 50  # seconds after which a process counts as dead, and the others end


def start_processes() -> None:
    """Joins the processes of one run, as the launcher (TPU slice, Slurm, Kubernetes, MPI) describes them to JAX.

    Where no launcher does, the environment gives JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID. Must come before anything that touches a device.
    """
    numbers = {argument: int(os.environ[name]) for argument, name in
               (("num_processes", "JAX_NUM_PROCESSES"), ("process_id", "JAX_PROCESS_ID")) if name in os.environ}
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=SILENCE, **numbers)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"config.distributed is set, but the processes cannot be joined: {error} Start by a launcher "
                        "known to JAX, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID") from error


def keep_compiled(folder: str) -> None:
    """Keeps what this process compiles in `folder` ('': nowhere), where the next process finds it.

    JAX_COMPILATION_CACHE_DIR, or a folder that JAX already uses, wins. A folder that cannot be made is said, once.
    """
    if not folder or "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.config.jax_compilation_cache_dir:
        return
    path = os.path.expanduser(folder)
    try:
        if path.startswith("~"):
            raise OSError(errno.ENOENT, "there is no home folder")
        os.makedirs(path, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        log.warning("compiled programs are not kept in config.compilation_cache %s: %s", folder, error.strerror)
        return
    jax.config.update("jax_compilation_cache_dir", path)


def find_devices() -> list[jax.Device]:
    """All devices of all processes; UserError where JAX_PLATFORMS asks for one that is not there."""
    try:
        return jax.devices()
    except Exception as error:  # a plugin may raise anything
        raise UserError(no_device(error)) from error


def no_device(error: Exception) -> str:
    """What to do where JAX finds no device, in one line."""
    wanted = os.environ.get("JAX_PLATFORMS", "")
    asked = f"JAX_PLATFORMS is {wanted}, but " if wanted else ""
    plugins = sorted({dist.name for dist in importlib.metadata.distributions()
                      if re.fullmatch(r"jax[-_]\w+[-_]plugin|libtpu", dist.name or "")})
    reason = f": {one_line(error)}" if str(error) else ""
    return (f"{asked}JAX finds no such device ({type(error).__name__}{reason}); installed are cpu"
            f"{''.join(f', {name}' for name in plugins)}: pip install \"jax[cuda13]\" or \"jax[tpu]\" for an "
            "accelerator, or set JAX_PLATFORMS=cpu")


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The one-axis mesh 'data' over `devices` (all of all processes where not given)."""
    count = len(find_devices()) if devices is None else len(devices)
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def platform(mesh: Mesh | None) -> str:
    """That of a mesh's devices, or of the default one: 'cpu', 'gpu' or 'tpu'."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of parameters and logs: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The sharding of batches: rows split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def under(mesh: Mesh, function: Callable) -> Callable:
    """`function`, traced under `mesh`: operators with kernels of their own split them over its devices."""
    @functools.wraps(function)
    def traced(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return traced


def check_batch_size(size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises UserError unless each of the `accumulate` micro-batches splits evenly over the devices."""
    if size % (mesh.size * accumulate):
        micro = f" in {accumulate} micro-batches" if accumulate > 1 else ""
        raise UserError(f"config.batch_size (={size}) must be divisible by the number of devices (={mesh.size}){micro}")


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a tree of arrays, the same in every process, on every device."""
    sharding = replicated(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def put_local_rows(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Joins each process's rows of a batch to global arrays, split over the devices."""
    sharding = split(mesh)
    return {key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()}


def local_copies(tree: Any, mesh: Mesh) -> Any:
    """Arrays that every device of all processes has a copy of -> the copies of this process's devices."""
    sharding = NamedSharding(mesh.local_mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.make_array_from_single_device_arrays(
        x.shape, sharding, [shard.data for shard in x.addressable_shards]), tree)
