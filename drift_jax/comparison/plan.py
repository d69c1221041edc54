"""Which runs a comparison consists of: methods x variants x seeds, each as a command of its own."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drift_jax import assemble, record
from drift_jax import config as configs
from drift_jax.config import ConfigError
from drift_jax.data.source import ProblemStream

# A run of stage 1 serves all configurations that differ in these only: the name, which no code
# looks at, and the host's decisions of stage 2. What enters the compiled update is not among them,
# since another program may round otherwise.
_STAGE_2 = ("method", "mixed.")


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
      method, variant, seed: as in its record.
      root: folder of the comparison, or of a part of it.
      arguments: of `python -m drift_jax.main`, but for `--workdir` and `--fork_from`.
      config: the configuration that these resolve to.
      stage1: the run whose end this one forks; None runs in one piece.
      note: what else a person has to know to tell it from others.
    """

    method: str
    variant: str
    seed: int
    root: Path
    arguments: tuple[str, ...]
    config: Any
    stage1: "Cell | None" = None
    note: str = ""

    @property
    def name(self) -> str:
        """What a person calls it."""
        words = (self.method, self.variant, f"seed={self.seed}", self.note)
        return ", ".join(filter(None, words))

    @property
    def folder(self) -> Path:
        """Its work directory."""
        parts = (self.method, _folder_name(self.variant), f"seed{self.seed}")
        return self.root.joinpath(*filter(None, parts))

    @property
    def record(self) -> Path:
        """The file that says what came out."""
        return self.root / "raw" / record.file_name(self.method, self.variant, self.seed)

    @property
    def block(self) -> tuple[str, int]:
        """What it shares with the cells that it is compared with."""
        return self.variant, self.seed

    def command(self) -> list[str]:
        """Arguments of `python -m drift_jax.main`."""
        fork: tuple[str, ...] = ()
        if self.stage1 is not None:
            fork = (f"--fork_from={self.stage1.folder}@{self.stage1.config.train.steps}",)
        return [*self.arguments, f"--workdir={self.folder}", *fork]


@dataclass(frozen=True)
class Plan:
    """What the command line asks for.

    Attributes:
      config: experiment file with its arguments, without method and seed.
      overrides: `--config.section.field=value` for every cell; `{method}`, `{seed}` and the name of
        the varied argument in braces stand for the cell's.
      methods, seeds: the names and numbers.
      vary: an argument of the experiment file, and its values; ("", ("",)) varies nothing.
      out: folder of the comparison.
    """

    config: str
    overrides: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    vary: tuple[str, tuple[str, ...]]
    out: Path

    def __post_init__(self) -> None:
        given = [
            item.partition("=")[0].strip() for item in self.config.partition(":")[2].split(",")
        ]
        for name in ("method", "seed", self.vary[0]):
            if name and name in given:
                raise ConfigError(
                    f"--config={self.config} sets {name!r}, which the comparison sets itself; "
                    "leave it out"
                )
        for words in (self.methods, self.seeds, self.vary[1]):
            if len(set(words)) != len(words):
                raise ConfigError(f"{', '.join(map(str, words))}: each must stand there once")

    def variants(self) -> list[str]:
        """The labels of what is varied."""
        name, values = self.vary
        return [f"{name}={value}" if name else "" for value in values]

    def base_command(self, spec: str, variant: str) -> tuple[Path, list[str]]:
        """Where the base policy of a variant will lie, and arguments of the warm start for it."""
        folder = self.out / "base" / (_folder_name(variant) or "all")
        own = [text for text in self.overrides if text.startswith("--config.warm_start.")]
        spec = _filled(spec, self._words(variant))
        return folder, [f"--config={spec}", *own, f"--workdir={folder}"]

    def cells(self, chosen: Mapping[str, float] | None = None, base: bool = False) -> list[Cell]:
        """All cells, those that are compared with each other next to each other.

        Args:
          chosen: factor of the learning rate of each method; None is 1.
          base: whether each variant has a base policy of its own, at `base_command`'s place.
        """
        return [
            self._cell(
                self.out, method, variant, seed, factor=(chosen or {}).get(method, 1.0), base=base
            )
            for seed in self.seeds
            for variant in self.variants()
            for method in self.methods
        ]

    def sweep_cells(self, factor: float, base: bool = False) -> list[Cell]:
        """The cells that a learning rate is chosen by: all variants, the first seed, validation.

        The split stands last on their command line, so nothing before it can make them look at the
        test problems.
        """
        cells = [
            self._cell(
                self.out / "sweep" / f"{factor:g}",
                method,
                variant,
                self.seeds[0],
                factor=factor,
                base=base,
                last=("--config.evaluation.split=validation",),
            )
            for variant in self.variants()
            for method in self.methods
        ]
        return [replace(cell, note=f"learning rate x{factor:g}") for cell in cells]

    def _cell(
        self,
        root: Path,
        method: str,
        variant: str,
        seed: int,
        *,
        factor: float,
        base: bool,
        last: tuple[str, ...] = (),
    ) -> Cell:
        words = {**self._words(variant), "method": method, "seed": str(seed)}
        file, _, given = self.config.partition(":")
        items = [given, variant, f"method={method}", f"seed={seed}"]
        spec = f"{file}:{','.join(filter(None, items))}"
        overrides = [_filled(text, words) for text in self.overrides]
        if base:
            model = self.base_command("", variant)[0] / "model"
            overrides += ["--config.model.init=checkpoint", f"--config.model.path={model}"]
        config = configs.override(configs.load(spec), overrides)
        if factor != 1:
            rate = float(f"{config.optimizer.learning_rate * factor:.6g}")
            last = (f"--config.optimizer.learning_rate={rate!r}", *last)
        configs.override(config, last)
        arguments = (f"--config={spec}", *overrides, *last)
        return Cell(method, variant, seed, root, arguments, config)

    def _words(self, variant: str) -> dict[str, str]:
        name, _, value = variant.partition("=")
        return {name: value} if name else {}


def _filled(text: str, words: Mapping[str, str]) -> str:
    """The text with `{word}` replaced."""
    for word, value in words.items():
        text = text.replace(f"{{{word}}}", value)
    return text


def _folder_name(variant: str) -> str:
    return variant.replace("=", "").replace("/", "_")


# ---- checks -------------------------------------------------------------------------------------


def check_settings(cells: Sequence[Cell]) -> None:
    """Refuses what cannot run.

    Raises:
      ConfigError: naming the cell.
    """
    for cell in cells:
        mesh = cell.config.mesh
        try:
            # The least number of devices that the mesh is for: the run's own check knows them all.
            configs.validate(cell.config, device_count=mesh.data * mesh.tensor * max(mesh.fsdp, 1))
        except ConfigError as error:
            raise ConfigError(f"{cell.name}: {error}") from None


def check_folders(cells: Sequence[Cell]) -> None:
    """Refuses work directories and records of other runs than these; writes nothing.

    Raises:
      ConfigError: naming the cell and what differs.
    """
    for cell in cells:
        if cell.record.is_file():
            refuse_changes(cell, record.read(cell.record).config, str(cell.record))
        file = cell.folder / "config.json"
        if file.is_file():
            try:
                old = json.loads(file.read_text(encoding="utf-8"))["config"]
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{file} is damaged ({error}); delete {cell.folder}") from None
            refuse_changes(cell, old, str(cell.folder))


def refuse_changes(cell: Cell, old: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError if a cell's configuration is not the one that `where` holds.

    All fields count, also those that a run alone may change on resume: a comparison of runs that
    were evaluated at other steps, say, would be none.
    """
    changes = [
        change for part in configs.changed_fields(old, cell.config.to_dict()) for change in part
    ]
    if changes:
        raise ConfigError(
            f"{where} holds {cell.name} with other values: {', '.join(map(str, changes))}; "
            "use the values that it has, or another --out"
        )


def check_validation(cells: Sequence[Cell]) -> None:
    """Raises ConfigError where a task has no validation problems to choose by."""
    for cell in cells:
        assemble.open_problems(cell.config, assemble.open_tokenizer(cell.config), "validation")


# ---- one stage 1 for several cells --------------------------------------------------------------


def share_stage1(cells: Sequence[Cell]) -> list[Cell]:
    """The cells, those with an equal stage 1 forking one run of it.

    Raises:
      ConfigError: if no two cells have an equal stage 1.
    """
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(_stage1_key(cell), []).append(cell)
    runs: dict[str, Cell] = {}
    for key, members in groups.items():
        if len(members) > 1 and (steps := _stage1_steps(members[0].config)):
            runs[key] = _stage1_run(members[0], steps)
    if not runs:
        raise ConfigError(
            "--share-stage1: no two cells differ in nothing but `mixed.*`, the decisions of stage "
            "2, or stage 1 has no steps; leave it out"
        )
    return [replace(cell, stage1=runs.get(_stage1_key(cell))) for cell in cells]


def _stage1_run(cell: Cell, steps: int) -> Cell:
    config = cell.config.copy_and_resolve_references()
    config.train.steps = steps
    return replace(
        cell,
        root=cell.root / "stage1",
        config=config,
        arguments=(*cell.arguments, f"--config.train.steps={steps}"),
        note="stage 1",
    )


def _stage1_key(cell: Cell) -> str:
    """Equal for cells whose first stages are equal to the bit."""
    fields = {
        name: value
        for name, value in configs.flatten(cell.config).items()
        if not name.startswith(_STAGE_2)
    }
    # A state with a teacher and one without are different states.
    return json.dumps([fields, configs.needs_teacher(cell.config)], sort_keys=True)


def _stage1_steps(config: Any) -> int:
    """Steps of stage 1 that a run has before its stage 2; 0 where one of them is empty."""
    tokenizer = assemble.open_tokenizer(config)
    problems, _ = assemble.open_problems(config, tokenizer, "train")
    stream = ProblemStream(problems, config.seed, config.rollout.problems_per_step)
    steps = configs.warmup_length(config, stream.steps_per_epoch)
    return steps if 0 < steps < config.train.steps else 0


def stage1_runs(cells: Sequence[Cell]) -> Iterator[Cell]:
    """The shared runs, each once."""
    seen = set()
    for cell in cells:
        if cell.stage1 is not None and cell.stage1.folder not in seen:
            seen.add(cell.stage1.folder)
            yield cell.stage1
