"""A plan as aligned text, and as JSON."""

from collections.abc import Sequence
from typing import Any

from drift_jax.planning import advice, estimate, sizes
from drift_jax.planning.estimate import Plan, Step

GB, MB = 1e9, 1e6
# Of a GPU's memory: what jax takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says more.
DEFAULT_SHARE = 0.75
SHOWN = 6  # proposals


def render(
    name: str,
    plan: Plan,
    step: Step,
    compiled: dict[str, float] | None,
    proposals: list[advice.Proposal],
    executables: dict[str, int],
) -> str:
    """The whole answer of the command."""
    blocks = [
        head(name, plan),
        memory_table(plan),
        "\n".join(compiled_lines(plan, compiled)),
        "\n".join(time_lines(plan, step, executables)),
        verdict(plan),
        "\n".join(proposal_lines(plan, proposals)),
    ]
    return "\n\n".join(block for block in blocks if block)


SUMMARY = (
    "Qwen3-8B, modelled",
    "attention",
    "state",
    "sampling",
    "teacher's evaluation",
    "update",
    "GB of a device",
    "rollout, update: bound, s",
    "expected, s",
)


def summary(plan: Plan, step: Step) -> tuple[str, ...]:
    """One row of the documentation's table; GB that do not fit are marked."""

    def shown(size: float) -> str:
        return f"{size / GB:,.1f}" + " ✗" * (size > plan.device.memory)

    updating = max(plan.needs(phase) for phase in estimate.UPDATING if phase in plan.phases)
    return (
        f"{plan.devices} x {plan.device.title}",
        plan.attention,
        shown(sum(plan.state.values())),
        shown(plan.needs("sampling")),
        shown(plan.needs("teacher's evaluation")),
        shown(updating),
        f"{plan.device.memory / GB:.1f}",
        f"{step.rollout.bound:.0f}, {step.update.bound:.0f}",
        f"{step.rollout.expected:.0f}, {step.update.expected:.0f}",
    )


def head(name: str, plan: Plan) -> str:
    """What is planned."""
    rows = plan.lengths
    taught = f", the teacher's {rows.teacher:,}" if rows.teacher else ", no teacher"
    return (
        f"{name} on {plan.devices} x {plan.device.title}, modelled, not measured\n"
        f"{sizes.parameters(plan.model) / 1e9:.3g} B parameters; longest rows: the student's"
        f" {rows.student:,} tokens{taught}; attention {plan.attention}"
    )


def memory_table(plan: Plan) -> str:
    """Bytes of a device, by part and by phase."""
    unit = _unit(plan)

    def shown(size: float) -> str:
        return f"{size / unit:,.1f}" if size >= 0.05 * unit else f"{size / unit:.1g}" * (size > 0)

    lines = [(f"{_UNITS[unit]} on a device", "always", *plan.phases)]
    for part, size in plan.state.items():
        lines.append((part, shown(size), *("" for _ in plan.phases)))
    parts = dict.fromkeys(part for parts in plan.phases.values() for part in parts)
    for part in parts:
        cells = [shown(phase.get(part, 0.0)) for phase in plan.phases.values()]
        if any(cells):
            lines.append((part, "", *cells))
    total = sum(plan.state.values())
    lines.append(("sum", shown(total), *(shown(plan.needs(phase)) for phase in plan.phases)))
    return aligned(lines)


def compiled_lines(plan: Plan, compiled: dict[str, float] | None) -> list[str]:
    """What the compiler says, beside what the arithmetic says of the same program."""
    if compiled is None:
        return []
    modelled = max(plan.needs(phase) for phase in estimate.UPDATING if phase in plan.phases)
    return [
        f"compiled for {plan.devices} CPU devices in {compiled['seconds']:.0f} s: the update needs"
        f" {compiled['peak'] / GB:.3g} GB of a device ({compiled['arguments'] / GB:.3g} of"
        f" arguments, {compiled['temporary'] / GB:.3g} while it runs); by arithmetic"
        f" {modelled / GB:.3g}",
        "(a GPU's compiler fuses differently; XLA:CPU computes bfloat16 in float32)",
    ]


def time_lines(plan: Plan, step: Step, executables: dict[str, int]) -> list[str]:
    """FLOPs, seconds and executables."""
    flops = step.flops
    lines = [
        ("seconds of a step, longest rows", "bound", "expected"),
        ("rollout", f"{step.rollout.bound:.3g}", f"{step.rollout.expected:.3g}"),
        ("update", f"{step.update.bound:.3g}", f"{step.update.expected:.3g}"),
    ]
    more = " + ".join(f"{count} {what}" for what, count in executables.items())
    return [
        aligned(lines),
        f"gathering the weights for every token would add {step.gathering:.3g} s to the rollout"
        if step.gathering
        else "",
        f"{flops.total:.3g} FLOP an update, {flops.rows / max(flops.total, 1):.0%} in attention;"
        f" at most {sum(executables.values())} executables ({more})",
    ]


def verdict(plan: Plan) -> str:
    """Whether it fits, and where it does not."""
    has = plan.device.memory
    share = plan.peak / has
    if not plan.fits:
        over = [phase for phase in plan.phases if plan.needs(phase) > has]
        needed = ", ".join(f"{phase} {plan.needs(phase) / GB:.3g}" for phase in over)
        return f"does not fit: needs {plan.peak / GB:.3g} of {has / GB:.3g} GB ({needed})"
    line = f"fits: {_amount(plan.peak)} of {has / GB:.3g} GB ({plan.largest})"
    if share > 0.9:
        line += "; closer than such arithmetic is to the truth"
    if share > DEFAULT_SHARE:
        line += f"; set XLA_PYTHON_CLIENT_MEM_FRACTION={min(0.98, share + 0.03):.2f} at least"
    return line


def proposal_lines(plan: Plan, proposals: list[advice.Proposal]) -> list[str]:
    """What to change."""
    if plan.fits:
        return []
    if not proposals:
        return ["nothing that can be changed helps"]
    lines = [("change", "GB", "")]
    for one in proposals[:SHOWN]:
        what = one.flags()
        if one.attention != plan.attention:
            what = f"{what} fused attention (--attention={one.attention})".strip()
        if one.devices != plan.devices:
            what = f"{what} --devices={one.devices}".strip()
        said = "fits" if one.fits else "does not fit yet"
        said += "; changes results" if one.changes_results else ""
        lines.append((what, f"{one.peak / GB:,.1f}", said))
    return [aligned(lines)]


def as_json(
    name: str,
    plan: Plan,
    step: Step,
    compiled: dict[str, float] | None,
    proposals: list[advice.Proposal],
    executables: dict[str, int],
) -> dict[str, Any]:
    """The same in bytes, FLOPs and seconds."""
    return {
        "config": name,
        "modelled": True,
        "device": plan.device.title,
        "devices": plan.devices,
        "attention": plan.attention,
        "parameters": sizes.parameters(plan.model),
        "lengths": {"student": plan.lengths.student, "teacher": plan.lengths.teacher},
        "memory": plan.device.memory,
        "state": plan.state,
        "phases": plan.phases,
        "needs": {phase: plan.needs(phase) for phase in plan.phases},
        "peak": plan.peak,
        "fits": plan.fits,
        "compiled": compiled,
        "executables": executables,
        "flops": {"weights": step.flops.weights, "attention": step.flops.rows},
        "seconds": {
            "rollout": {"bound": step.rollout.bound, "expected": step.rollout.expected},
            "update": {"bound": step.update.bound, "expected": step.update.expected},
            "gathering": step.gathering,
        },
        "changes": [
            {
                "values": one.values,
                "devices": one.devices,
                "attention": one.attention,
                "peak": one.peak,
                "fits": one.fits,
                "changes_results": one.changes_results,
            }
            for one in proposals
        ],
    }


def aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns of equal width; the first is flush left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


_UNITS = {GB: "GB", MB: "MB"}


def _unit(plan: Plan) -> float:
    return GB if plan.peak >= GB else MB


def _amount(size: float) -> str:
    """GB with two digits at least."""
    return f"{size / GB:.0f}" if size >= 10 * GB else f"{size / GB:.2g}"
