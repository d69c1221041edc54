"""Decoding against the bound written out, and what seconds depend on."""

import dataclasses

import pytest

from drift_jax import config as configs
from drift_jax.planning import estimate, flops, memory, roofline, sizes
from drift_jax.planning.devices import DEVICES
from drift_jax.shapes import Lengths

MODEL = sizes.PUBLISHED["qwen3-8b"]


def setting(rows: int, devices: int = 1, **values) -> memory.Setting:
    of = configs.load("configs/qwen3_8b.py")
    chosen = {name.replace("__", "."): value for name, value in values.items()}
    configs.assign(of, {"rollout.problems_per_step": rows // 8, **chosen})
    lengths = Lengths(512, 1024, 2048)
    return memory.setting(of, MODEL, estimate.mesh_of(of, devices), fused=False, lengths=lengths)


# Milliseconds of one step of B rows with c tokens, max(W / BW, 2 P B / F) + B c kv / BW, worked out
# by hand from W = 15.14 GB, P = 7.57e9 and kv = 147,456 bytes.
@pytest.mark.parametrize(
    "device, rows, context, milliseconds",
    [
        ("h200", 32, 640, 3.78),
        ("h200", 64, 1536, 6.17),
        ("h200", 128, 2560, 13.2),
        ("h200", 256, 640, 8.95),
        ("h200", 256, 4608, 40.2),
        ("h100", 64, 1536, 8.85),
        ("h100", 256, 2560, 33.4),
    ],
)
def test_a_decoding_step_takes_what_weights_and_caches_weigh(device, rows, context, milliseconds):
    of = setting(rows)
    two, one = (
        roofline.decoding(of, DEVICES[device], tokens, context - 2).bound for tokens in (2, 1)
    )
    assert 1000 * (two - one) == pytest.approx(milliseconds, rel=0.01)


def test_turns_of_fewer_rows_read_the_weights_more_often():
    whole, half = setting(256), setting(256, rollout__max_rows=128)
    h200 = DEVICES["h200"]
    longer = roofline.decoding(half, h200, 100, 512).bound
    assert longer > 1.05 * roofline.decoding(whole, h200, 100, 512).bound


def test_eight_devices_divide_the_products_but_each_reads_all_weights():
    work, h200 = flops.Flops(weights=1e17), DEVICES["h200"]
    one, eight = setting(256), setting(256, 8, mesh__data=8, mesh__fsdp=1)
    assert roofline.updating(one, work, h200).bound == pytest.approx(
        8 * roofline.updating(eight, work, h200).bound, rel=0.05
    )
    floor = 2 * sizes.multiplied(MODEL) / h200.bandwidth
    assert roofline.decoding(eight, h200, 1000, 512).bound > 1000 * floor


def test_what_is_expected_is_never_better_than_the_bound():
    for devices in (1, 8):
        of, work = setting(256, devices), flops.Flops(1e17, 1e16)
        for device in DEVICES.values():
            rollout = roofline.decoding(of, device, 1000, 512)
            updating = roofline.updating(of, work, device)
            assert rollout.bound < rollout.expected and updating.bound < updating.expected


def test_published_sizes_are_those_of_the_models():
    billions = {"qwen3-0.6b": 0.596, "qwen3-1.7b": 1.72, "qwen3-4b": 4.02, "qwen3-8b": 8.19}
    billions |= {"olmo3-7b": 7.30, "smollm2-135m": 0.1345}
    assert billions.keys() == sizes.PUBLISHED.keys()
    for name, model in sizes.PUBLISHED.items():
        assert sizes.parameters(model) / 1e9 == pytest.approx(billions[name], rel=0.002)
    assert sizes.multiplied(MODEL) == pytest.approx(7.57e9, rel=0.001)
    assert sizes.cache_bytes(MODEL, 2) == 147456


def test_measured_ceilings_lie_under_the_data_sheet():
    for device in DEVICES.values():
        assert device.copy < device.bandwidth and device.gemm < device.matmul
        assert dataclasses.astuple(device)[1:5] > (0.0,) * 4
