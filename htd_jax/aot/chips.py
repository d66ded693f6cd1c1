"""The accelerators that programs are compiled for: what they can do, and their description to XLA."""
import os
from typing import NamedTuple

from jax.experimental import topologies

from htd_jax.errors import UserError


class Chip(NamedTuple):
    """Memory in GiB; bytes/s and FLOP/s (bfloat16) where times are estimated; a TPU's clock in Hz."""

    platform: str
    memory: int
    bandwidth: float = 0
    flops: float = 0
    clock: float = 0


CHIPS = {
    "v4": Chip("tpu", 32),
    "v5e": Chip("tpu", 16, 819e9, 197e12, 1.5e9),  # 4 matrix units of 128 x 128 at 1.5 GHz are its 197 TFLOP/s
    "v5p": Chip("tpu", 95),
    "v6e": Chip("tpu", 32),
    "h100": Chip("cuda", 80, 3.35e12, 989e12),
}

_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_INSTALL = {"tpu": "Is libtpu installed (pip install libtpu)?",
            "cuda": 'Is the plugin installed (pip install "jax[cuda13]")?'}


def chip_of(topology: str) -> Chip:
    """The chip that a topology such as v5e:2x2 or h100:1 names."""
    name = topology.split(":")[0]
    if name not in CHIPS:
        raise UserError(f"--topology (={topology}): must begin with one of {', '.join(CHIPS)}, as in v5e:1x1 or h100:1")
    return CHIPS[name]


def described_devices(topology: str) -> list:
    """The devices of a topology that is described, not there."""
    platform = chip_of(topology).platform
    try:
        return (_tpus if platform == "tpu" else _gpus)(topology)
    except Exception as error:  # whatever the plugin raises; mostly that it is not installed
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--topology (={topology}): cannot be described: {reason}. {_INSTALL[platform]}") from error


def _tpus(topology):
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no machine to ask what it is
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is taken: several of these may run at once
    single = dict(chips_per_host_bounds=(1, 1, 1)) if topology.endswith(":1x1") else {}
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, **single).devices


def _gpus(topology):
    count = topology.partition(":")[2] or "1"
    return topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=_H100, topology=f"1x1x{count}").devices
