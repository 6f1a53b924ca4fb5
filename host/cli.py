"""The command line: run workflows, draw digits, print plans."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from . import calibrate_command, convert_command, serve_command
from .serve_command import DemoCheckpoint

if TYPE_CHECKING:
    from .embedded import EmbeddedHost

EXIT_CODES = "Exit codes: 0 done, 1 an error while running, 2 bad input (workflow, option, file), 130 interrupted."

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="FewStep: few-step solvers for diffusion and flow models.\n\n" + EXIT_CODES,
)

Out = Annotated[Path, typer.Option("--out", help="Folder for the pictures; made if it is not there.")]
Solver = Annotated[str, typer.Option("--solver", help="The method; 'fewstep solvers' lists them with their options.")]
Steps = Annotated[int, typer.Option("--steps", min=1, max=10_000, help="Number of steps.")]
Schedule = Annotated[str, typer.Option("--schedule", help="How the steps are spread: uniform_t, uniform_lambda, quadratic_t, "
                                                          "karras, exponential, edm_rho, beta or shifted.")]
Order = Annotated[int | None, typer.Option("--order", help="Order of the solver; its default if left out.")]
Options = Annotated[list[str] | None, typer.Option("--option", help="Further options as name=value; may be repeated.")]


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turns exceptions into one line on the error stream and the documented exit code."""
    from ..demo.errors import DemoError
    from ..samplers.errors import FewStepError
    from .errors import HostInputError, InterruptProcessingException, NodeExecutionError, WorkflowError

    bad_input = (WorkflowError, FewStepError, DemoError, HostInputError)
    try:
        yield
    except (KeyboardInterrupt, InterruptProcessingException):
        _fail("interrupted", 130)
    except bad_input as error:
        _fail(str(error), 2)
    except NodeExecutionError as error:
        _fail(str(error), 2 if isinstance(error.__cause__, bad_input) else 1)
    except BrokenPipeError:  # the reader, such as 'head', has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # the last resort: one line, not a traceback
        _fail(f"{type(error).__name__}: {error}", 1)


def _fail(message: str, code: int) -> NoReturn:
    print(f"fewstep: {message}", file=sys.stderr)
    raise typer.Exit(code) from None


@app.command()
def run(
    workflow: Annotated[Path, typer.Argument(help="A workflow as the browser saves it or in API form (JSON), or a PNG saved "
                                                  "with one inside.")],
    out: Out = Path("out"),
    pictures: Annotated[Path | None, typer.Option(
        "--input", help="Folder with the pictures that Load Image names; the workflow's own by default.")] = None,
    demo_checkpoint: DemoCheckpoint = False,
) -> None:
    """Run a workflow file and save its pictures.

    The workflow may use FewStep's nodes and the stock nodes of the example workflows: prompts, empty latents, VAE, masks,
    KSampler, SamplerCustom and SamplerCustomAdvanced with their parts, loading and saving pictures. Everything wrong with it
    is reported before anything runs, and then nothing is written.

    Exit codes: 0 done, 1 an error while running, 2 bad input, 130 interrupted.
    """
    with exit_codes():
        from .workflows import load_workflow

        prompt, extra = load_workflow(workflow)
        _execute(prompt, extra, out, pictures or workflow.parent, demo_checkpoint)


@app.command()
def sample(
    prompt: Annotated[str, typer.Option("--prompt", help="The digit to draw: 7 or seven; empty draws any.")] = "7",
    negative: Annotated[str, typer.Option("--negative", help="The digit to keep away from; empty is the usual guidance.")] = "",
    steps: Steps = 8,
    solver: Solver = "unipc",
    schedule: Schedule = "uniform_t",
    order: Order = None,
    option: Options = None,
    cfg: Annotated[float, typer.Option("--cfg", min=0, max=100, help="Guidance scale; 1 is none and twice as fast.")] = 2.0,
    batch: Annotated[int, typer.Option("--batch", min=1, max=4096, help="How many pictures.")] = 1,
    size: Annotated[int, typer.Option("--size", min=16, max=1024, help="Side in pixels; the model was trained on 64.")] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**64 - 1, help="The same seed gives the same pictures.")] = 0,
    form: Annotated[str, typer.Option("--form", help="Which demo model: eps, v or flow.")] = "eps",
    out: Out = Path("out"),
) -> None:
    """Draw digits with the demo model, without writing a workflow.

    The pictures carry the workflow that made them: 'fewstep run PICTURE.png' makes them again. A solver's preset lowers its
    order where there are few steps; with --order or --option the solver takes exactly what you say.

    Exit codes: 0 done, 1 an error while running, 2 bad input, 130 interrupted.
    """
    with exit_codes():
        from .planning import parse_options, with_order
        from .workflows import sample_workflow

        graph = sample_workflow(
            form=form, prompt=prompt, negative=negative, batch=batch, size=size, seed=seed, steps=steps, cfg=cfg, solver=solver,
            schedule=schedule, options=with_order(solver, parse_options(option or []), order),
        )
        _execute(graph, {}, out)


@app.command()
def plan(
    solver: Solver = "unipc",
    steps: Steps = 8,
    order: Order = None,
    schedule: Schedule = "uniform_t",
    frame: Annotated[str, typer.Option("--frame", help="Noise schedule: discrete (Stable Diffusion's), flow, edm, linear_vp or "
                                                       "cosine_vp.")] = "discrete",
    end: Annotated[str, typer.Option("--end", help="zero: the last step goes to sigma 0; stop: it ends at the schedule's "
                                                   "smallest sigma, as in the papers.")] = "zero",
    option: Options = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Also draw the plan to this PNG file.")] = None,
) -> None:
    """Print a solver's coefficients for a schedule: every evaluation, and what each state is made of.

    Nothing is sampled. For example: fewstep plan --solver unipc --order 3 --steps 8 --option variant=bh1

    Exit codes: 0 done, 1 an error while running, 2 bad input.
    """
    with exit_codes():
        from .planning import parse_options, plan_from, with_order

        made = plan_from(solver, frame, schedule, steps, end, with_order(solver, parse_options(option or []), order))  # type: ignore[arg-type]
        print(made.describe())
        if plot is not None:
            from ..samplers import Plan
            from ..samplers.plotting import plot_plan
            from .errors import HostInputError

            if not isinstance(made, Plan):
                raise HostInputError(f"{solver} chooses its steps while running: there is no plan to draw ahead")
            try:
                plot_plan(made, plot)
            except OSError as error:
                raise HostInputError(f"cannot write {plot}: {error.strerror}") from error
            print(f"\nwrote {plot}")


@app.command()
def solvers() -> None:
    """List the solvers with their options: the default first, then the other choices."""
    with exit_codes():
        from ..samplers import solver_names, solver_options

        for name in [*solver_names(), "unic"]:
            print(name + (" (corrector)" if name == "unic" else ""))
            for option, facts in solver_options(name).items():
                others = [str(c) for c in facts.choices or () if c != facts.default or isinstance(c, bool) != isinstance(
                    facts.default, bool)]
                default = ", ".join(map(str, facts.default)) or "none" if isinstance(facts.default, tuple) else facts.default
                print(f"    {option:<18} {default}" + (f"  (or {', '.join(others)})" if others else ""))


def _execute(
    prompt: Any, extra: dict[str, Any], out: Path, pictures: Path | None = None, demo_checkpoint: bool = False
) -> None:
    """Runs a workflow with a progress bar; prints the files and the seconds. One faulty output is enough to refuse it."""
    from .executor import Executor, all_classes
    from .validate import refuse

    with host_with_bar(out, pictures) as host:
        executor = Executor(host, all_classes(demo_checkpoint))
        refuse(executor.check(prompt).node_errors)
        result = executor.execute(prompt, extra)
    folders = {"output": host.output_directory, "temp": host.temp_directory}
    for ui in result.ui.values():
        for image in ui.get("images", []):
            print(folders[image["type"]] / image["subfolder"] / image["filename"])
    print(f"sampling took {host.sampling_seconds:.2f} s")


@contextmanager
def host_with_bar(out: Path, pictures: Path | None, what: str = "sampling") -> Iterator[EmbeddedHost]:
    """The host, with a bar on the error stream if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from .embedded import EmbeddedHost

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: list[Any] = []

        def progress(value: int, total: int, denoised: Any) -> None:
            if not tasks or value <= (bar.tasks[-1].completed or 0):
                tasks.append(bar.add_task(what, total=total))
            bar.update(tasks[-1], completed=value, total=total)

        yield EmbeddedHost(out, input_directory=pictures, on_progress=progress)


for command in (calibrate_command, serve_command, convert_command):
    command.register(app)
