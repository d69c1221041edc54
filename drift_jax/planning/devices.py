"""Devices by name: what their data sheets say, and what was measured of them."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Device:
    """One accelerator.

    Attributes:
      title: its name for people.
      memory: bytes that a program can have; of the data sheet where nobody looked.
      bandwidth: of its memory, data sheet, in bytes a second.
      matmul: dense bfloat16 products, data sheet, in FLOP a second.
      link: to the other devices of a node, bytes a second in one direction.
      copy: measured ceiling of `bandwidth`; 0 where nobody measured.
      gemm: measured ceiling of `matmul`; 0 where nobody measured.
    """

    title: str
    memory: float
    bandwidth: float
    matmul: float
    link: float
    copy: float = 0.0
    gemm: float = 0.0


# Measured: a copy and a bfloat16 product of 8192 x 8192 random matrices; memory as the driver
# gives it; the links of Hopper as NCCL's all-gather over eight devices uses them. The others'
# numbers are their data sheets', links without the overhead that every library has.
DEVICES = {
    "h200": Device("H200", 139 * GIB, 4.8e12, 989e12, 350e9, copy=4.3e12, gemm=769e12),
    "h100": Device("H100 SXM 80GB", 78 * GIB, 3.35e12, 989e12, 350e9, copy=3.0e12, gemm=798e12),
    "a100": Device("A100 SXM 80GB", 80e9, 2.039e12, 312e12, 300e9),
    "l40s": Device("L40S 48GB", 48e9, 864e9, 362e12, 32e9),
    "l4": Device("L4 24GB", 24e9, 300e9, 121e12, 32e9),
}
