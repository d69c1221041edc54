"""Every proposal is a plan of its own."""

import pytest

from drift_jax import config as configs
from drift_jax.planning import advice, estimate, sizes

MODEL = sizes.PUBLISHED["qwen3-8b"]
MACHINES = [("h200", 8), ("h100", 8), ("h200", 1), ("l4", 8)]


def planned(device: str, devices: int, **values):
    of = configs.load("configs/qwen3_8b.py")
    configs.assign(of, {name.replace("__", "."): value for name, value in values.items()})
    return of, estimate.make(of, MODEL, device=device, devices=devices)


@pytest.mark.parametrize("device, devices", MACHINES)
def test_a_proposal_needs_what_a_plan_with_it_says(device, devices):
    of, plan = planned(device, devices)
    found = advice.proposals(of, MODEL, plan, device)
    assert found
    for one in found:
        changed = configs.override(of.copy_and_resolve_references(), one.flags().split())
        other = estimate.make(
            changed, MODEL, device=device, devices=one.devices, attention=one.attention
        )
        assert (other.peak, other.fits) == (one.peak, one.fits)
        assert one.peak < plan.peak
        configs.validate(changed, device_count=one.devices)


def test_what_suffices_comes_first_and_what_changes_results_last_among_it():
    of, plan = planned("h200", 8)
    found = advice.proposals(of, MODEL, plan, "h200")
    fits = [one.fits for one in found]
    assert fits[0] and fits == sorted(fits, reverse=True)
    changing = [one.changes_results for one in found if one.fits]
    assert True in changing and changing == sorted(changing)


def test_of_more_rows_and_fewer_the_mildest_that_suffices_is_named():
    of, plan = planned("h200", 8)
    (rows,) = [
        one
        for one in advice.proposals(of, MODEL, plan, "h200")
        if list(one.values) == ["rollout.max_rows"]
    ]
    kept = rows.values["rollout.max_rows"]
    assert rows.fits
    _, twice = planned("h200", 8, rollout__max_rows=2 * kept)
    assert not twice.fits


def test_where_no_change_suffices_alone_a_combination_is_tried():
    of, plan = planned("h100", 8)
    first, *others = advice.proposals(of, MODEL, plan, "h100")
    assert first.fits and len(first.values) > 1 and not first.changes_results
    assert not any(one.fits and one.values for one in others)


def test_recomputation_is_proposed_where_it_is_off():
    of, plan = planned("h200", 8, model__remat="none", evaluation__teacher_samples=0)
    assert not plan.fits
    assert any("model.remat" in one.values for one in advice.proposals(of, MODEL, plan, "h200"))


def test_one_gpu_cannot_hold_the_state_of_the_update_and_more_of_them_can():
    of, plan = planned("h200", 1)
    assert sum(plan.state.values()) > 0.85 * plan.device.memory
    found = advice.proposals(of, MODEL, plan, "h200")
    assert not any(one.fits for one in found if one.devices == 1)
    assert any(one.fits for one in found if one.devices > 1)
