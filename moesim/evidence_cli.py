"""The verbs of evidence: time the machine at hand, fit coefficients to measurements, check predictions against them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.errors import UserError
from moesim.terminal import Progress, console, print_json, say

if TYPE_CHECKING:
    from moesim.measurement.outcome import Measured

app = typer.Typer(
    name="measure",
    help="Time kernels and collectives of the machine at hand into a measurement file.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
AsJson = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]
_BROKEN, _INTERRUPTED = 1, 130


@app.command()
def gpu(
    out: Annotated[Path, typer.Argument(help="measurement file to write (.csv or .parquet)")],
    preset: Annotated[str, typer.Option(help="small (a CPU in under a minute), gpu (minutes), auto")] = "auto",
    kinds: Annotated[str, typer.Option(help="only these, with commas: gemm, expert_gemm, attention, ...")] = "",
    device: Annotated[str | None, typer.Option(help="cuda, cuda:N or cpu [default: the GPU, else the CPU]")] = None,
    seconds: Annotated[float | None, typer.Option(help="end after so long, and keep what is there")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Time matrix products, experts, attention, passes over memory and launches on the GPU at hand."""
    from moesim.measurement import plan, torch_device, torch_gpu

    chosen: Any = preset
    if kinds:
        automatic = "gpu" if torch_device.choose_device(device).type == "cuda" else "small"
        chosen = plan.cases(automatic if preset == "auto" else preset, kinds.split(","))
    with Progress() as bar:
        found = torch_gpu.measure_gpu(
            out, chosen, seconds, device, seed, lambda at: bar("measuring", at.done / at.cases)
        )
    _tell(found, as_json)


@app.command()
def collectives(
    out: Annotated[Path, typer.Argument(help="measurement file to write (.csv or .parquet)")],
    preset: Annotated[str, typer.Option(help="small (to 1 MiB a rank), full (to 1 GiB), auto")] = "auto",
    nic: Annotated[str | None, typer.Option(help="a GPU's scale-out bandwidth, e.g. '400 Gb/s', for the file")] = None,
    ranks_per_domain: Annotated[
        int | None, typer.Option(min=1, help="ranks of one scale-up domain [default: of one machine]")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="end after so long, and keep what is there")] = None,
    as_json: AsJson = False,
) -> None:
    """Time exchanges between processes (NCCL or gloo): torchrun ... -m moesim measure collectives FILE."""
    from moesim.measurement import torch_collectives
    from moesim.units import parse

    rate = parse(nic, "B/s") if nic is not None else None
    found = torch_collectives.measure_collectives(out, preset, seconds, rate, ranks_per_domain)
    if found is not None:
        _tell(found, as_json)


@app.command()
def steps(
    out: Annotated[Path, typer.Argument(help="case file to write (.yaml)", show_default=False)],
    preset: Annotated[str, typer.Option(help="models of trace train: tiny (a CPU), small, gpu")] = "gpu",
    models: Annotated[str, typer.Option(help="only these of the preset, with commas")] = "",
    device: Annotated[str | None, typer.Option(help="cuda, cuda:N or cpu [default: the GPU, else the CPU]")] = None,
    seconds: Annotated[float, typer.Option(help="for each model")] = 10.0,
) -> None:
    """Time whole training steps of small models, and an expert layer of each, as cases for validate and calibrate."""
    from moesim import catalog
    from moesim.measurement.torch_steps import measure_steps

    with Progress() as bar:
        found = measure_steps(out, preset, seconds, device, _words(models), bar)
    timed = found[0]["scenario"]["cluster"]["gpu"]
    known = timed in catalog.names("gpus")
    then = f"moesim validate {out} compares" if known else f"no law knows a {timed}"
    say(f"wrote {len(found)} cases to {out}; {then}")


@app.command()
def predict(
    gpu_name: Annotated[str, typer.Argument(metavar="GPU", help="catalog name of the GPU", show_default=False)],
    out: Annotated[Path, typer.Argument(help="table of predictions to write (.csv)", show_default=False)],
    preset: Annotated[str, typer.Option(help="the cases: small or gpu")] = "gpu",
    kinds: Annotated[str, typer.Option(help="only these, with commas: gemm, expert_gemm, attention, ...")] = "",
    calibration: Annotated[Path | None, typer.Option(help="a calibration file of your own")] = None,
) -> None:
    """Write down what the laws say of the cases of `measure gpu`, before a GPU is at hand to time them."""
    from moesim.measurement import plan
    from moesim.validation.foretelling import check_table, foretell

    wanted = plan.cases(preset, _words(kinds))
    check_table(out)
    with Progress() as progress:
        found = foretell(gpu_name, wanted, calibration=calibration, progress=progress)
    written = found.save(out)
    say(f"wrote {len(found.rows)} predictions for {found.gpu} to {written}; once timed, moesim validate compares")
    for label, reason in found.silent:
        say(f"note: {label}: {reason}")


def _words(text: str) -> list[str]:
    """The words of "a, b"."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _tell(found: Measured, as_json: bool) -> None:
    """What a run brought."""
    if as_json:
        print_json({"written": str(found.path), "rows": len(found.rows), "device": found.device, "ended": found.ended})
    else:
        say(found.summary())
    if found.ended == "interrupted":
        raise typer.Exit(_INTERRUPTED)


def calibrate(
    measurements: Annotated[list[Path], typer.Argument(help="measurement files, or folders of them")],
    out: Annotated[Path, typer.Option("--out", help="calibration file to write")] = Path("calibration.yaml"),
    as_json: AsJson = False,
) -> None:
    """Fit coefficients with residuals into a calibration that a scenario can name (cluster.calibration)."""
    import moesim
    from moesim.calibration.table import tables

    with Progress() as progress:
        found = moesim.calibrate(measurements, out, progress)
    if as_json:
        print_json(found.as_dict())
        return
    for table in tables(found):
        console().print(table)
    for note in found.notes:
        say(f"note: {note}")
    say(f"wrote {out}; a scenario names it as cluster.calibration: {out}")


def validate(
    cases: Annotated[
        list[Path] | None, typer.Argument(help="case files (YAML) [default: those of the package]")
    ] = None,
    calibration: Annotated[Path | None, typer.Option(help="a calibration file of your own")] = None,
    simulated: Annotated[
        bool, typer.Option("--simulate", help="training steps and serving by simulation, not the closed form")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Predict measured cases and compare; exit code 1 where a stated tolerance is broken."""
    import moesim

    with Progress() as progress:
        found = moesim.validate(cases or None, calibration=calibration, simulate=simulated, progress=progress)
    if as_json:
        print_json(found.as_dict())
    else:
        from moesim.validation.table import tables

        for table in tables(found):
            console().print(table)
        if found.coverage is not None:
            console().print(f"measured values inside the stated range: {100 * found.coverage:.0f} %")
        for line in found.known_failures:
            console().print(f"known: {line}")
    for line in found.broken:
        say(f"broken: {line}")
    if all(row.predicted is None for row in found.cases):
        raise UserError("not one of the cases is predicted: the reasons stand beside them")
    if found.broken:
        raise typer.Exit(_BROKEN)
