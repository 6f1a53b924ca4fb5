"""The plan of one node of a graph that has not run: what the browser draws into the node. JSON in, JSON out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .frames import frame_of
from .last_runs import LastRun, recall
from .live_graph import MAX_STEPS, KnownModel, LiveGraph, Unknown, is_link
from .sampling import recipe_of

if TYPE_CHECKING:
    from ..samplers import Recipe

ASSUMED_STEPS = 8
KSAMPLER, INSPECTOR, COMPARE = "FewStepKSampler", "FewStepPlanInspector", "FewStepCompare"


class Malformed(ValueError):
    """The request is not {"prompt": a graph in API form, "node": the id of one of its nodes}."""


class Steps(NamedTuple):
    """Sigmas, what they are for people, whether they are those that will run, and the schedule if auto chose it."""

    sigmas: Any
    words: str
    known: bool
    auto: str = ""


def live_plan(data: Any) -> dict[str, Any]:
    """What a solver, corrector, KSampler or inspector node will do.

    Args:
        data: {"prompt": {node id: {"class_type", "inputs"}}, "node": id}.

    Returns:
        JSON values: node, label, recipe, nfe and peak_latents (null where a solver chooses its steps while running),
        stochastic, biased, sigmas and lambdas of the nodes (null for infinity), inner [[step, sigma]...] of evaluations
        between nodes, table {rows, columns, values} or null, text, citations, and basis {known, text}: what it is drawn from.
        If there is no plan: {"node", "error": {"type", "message"}}.

    Raises:
        Malformed: the request cannot be read.
    """
    from ..samplers.errors import CalibrationWarning, FewStepError
    from .host import HostError

    prompt, node = _checked(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CalibrationWarning)  # said in the run
            return {"node": node, **_plan_of(LiveGraph(prompt), node)}
    except (FewStepError, HostError, Unknown) as error:
        kind = "NotKnownYet" if isinstance(error, Unknown) else type(error).__name__
        return {"node": node, "error": {"type": kind, "message": str(error)}}


def _checked(data: Any) -> tuple[Mapping[str, Any], str]:
    if not isinstance(data, dict) or not isinstance(data.get("prompt"), dict) or not isinstance(data.get("node"), (str, int)):
        raise Malformed('expected {"prompt": {node id: {"class_type", "inputs"}}, "node": id}')
    prompt, node = data["prompt"], str(data["node"])
    for i, entry in prompt.items():
        formed = isinstance(entry, dict) and isinstance(entry.get("class_type"), str) and isinstance(entry.get("inputs"), dict)
        if not formed:
            raise Malformed(f"node {i!r} is not {{\"class_type\": text, \"inputs\": object}}")
    if node not in prompt:
        raise Malformed(f"there is no node {node!r} in the prompt")
    return prompt, node


def _plan_of(graph: LiveGraph, node: str) -> dict[str, Any]:
    kind = graph.kind(node)
    if kind == KSAMPLER:
        return _ksampler_plan(graph, node)
    if kind == INSPECTOR:
        link = graph.inputs(node).get("sampler")
        if not is_link(link):
            raise Unknown("connect a FewStep solver to see its plan")
        return _solver_plan(graph, link, node)
    if not graph.evaluates(node) or "SAMPLER" not in graph.classes[kind].RETURN_TYPES:
        raise Unknown(f"{kind} has no plan of its own")
    return _solver_plan(graph, [node, graph.classes[kind].RETURN_TYPES.index("SAMPLER")], _where_used(graph, node))


def _solver_plan(graph: LiveGraph, link: Any, where: str | None) -> dict[str, Any]:
    """The plan of the SAMPLER on ``link``, run where node ``where`` says."""
    recipe = recipe_of(graph.value(link))
    graph.run = recall(recipe.to_json())
    model = graph.model(_model_link(graph, where))
    return _drawn(recipe, model, _steps(graph, where, model, graph.run))


def _ksampler_plan(graph: LiveGraph, node: str) -> dict[str, Any]:
    from .ksampler import AUTO, own_recipe

    inputs = graph.inputs(node)
    if is_link(inputs.get("sampler")):
        return _solver_plan(graph, inputs["sampler"], node)
    solver = graph.widget(node, "solver")
    cfg = graph.widget(node, "cfg") if solver == AUTO else 1.0

    def found() -> tuple[Recipe, KnownModel, Steps]:
        model = graph.model(inputs.get("model"))
        steps = _steps(graph, node, model, graph.run)
        if len(steps.sigmas) < 2:
            raise Unknown("there are no steps: the latent is passed on as it is")
        return own_recipe(model.model_sampling, solver, len(steps.sigmas) - 1, cfg), model, steps

    graph.run = recall(found()[0].to_json())  # the model may be known by it
    return _drawn(*found(), by_auto=solver == AUTO)


def _where_used(graph: LiveGraph, node: str) -> str | None:
    """The first node that samples with ``node``'s SAMPLER or inspects it, correctors in between; None if there is none."""
    waiting, seen = [node], set()
    while waiting:
        for reader in graph.readers(waiting.pop(0)):
            if reader in seen:
                continue
            seen.add(reader)
            if graph.evaluates(reader):
                waiting.append(reader)
            elif graph.kind(reader) in (KSAMPLER, COMPARE) or "sigmas" in graph.inputs(reader):
                return reader
    return None


def _model_link(graph: LiveGraph, where: str | None) -> Any:
    """The link to the MODEL of a sampling node, its guider's if it has a guider."""
    inputs = {} if where is None else graph.inputs(where)
    guider = inputs.get("guider")
    if is_link(guider) and str(guider[0]) in graph.prompt:
        inputs = graph.inputs(str(guider[0]))
    return inputs.get("model")


def _steps(graph: LiveGraph, where: str | None, model: KnownModel, run: LastRun | None) -> Steps:
    """The sigmas that a sampling node will get."""
    from .compare import step_counts
    from .ksampler import AUTO, own_steps
    from .schedule import schedule

    link = None if where is None else graph.inputs(where).get("sigmas")
    if is_link(link):
        try:
            return Steps(graph.value(link), f"the connected schedule (node {link[0]})", True)
        except Unknown:
            pass
    elif where is not None and graph.kind(where) == KSAMPLER:
        kind, count, denoise = (graph.widget(where, name) for name in ("schedule", "steps", "denoise"))
        cfg = graph.widget(where, "cfg") if kind == AUTO else 1.0
        own = own_steps(model.model_sampling, kind, count, cfg, denoise)
        return Steps(own.sigmas, "the node's schedule", True, own.auto)
    elif where is not None and graph.kind(where) == COMPARE:
        count = step_counts(graph.widget(where, "steps"))[0]
        kind, end = (graph.widget(where, name) for name in ("schedule", "end"))
        return Steps(schedule(model, kind, count, end=end), "the first steps of the comparison", True)
    if run is not None:
        return Steps(list(run.sigmas), "the sigmas of this solver's last run", True)
    return Steps(schedule(model, "uniform_t", ASSUMED_STEPS), f"{ASSUMED_STEPS} even steps", False)


def basis(model: KnownModel, steps: Steps) -> dict[str, Any]:
    """Whether the plan is the one that will run, and in words what it is drawn from."""
    if model.known and steps.known:
        return {"known": True, "text": f"Drawn from {steps.words} and {model.words}."}
    assumed = " and ".join(part.words for part in (steps, model) if not part.known)
    rest = "".join(f" Drawn from {part.words}." for part in (steps, model) if part.known)
    return {"known": False, "text": f"Assumed until it is known: {assumed}.{rest}"}


def _drawn(recipe: Recipe, model: KnownModel, steps: Steps, by_auto: bool = False) -> dict[str, Any]:
    """The answer; what auto chose stands before its texts."""
    from ..samplers import Plan
    from ..samplers.describe import describe
    from ..samplers.errors import OptionError
    from ..samplers.plotting import coefficient_table
    from .ksampler import auto_words

    count = len(steps.sigmas) - 1
    if count < 1:
        raise Unknown("there are no steps: the latent is passed on as it is")
    if count > MAX_STEPS:
        raise OptionError(f"plans of more than {MAX_STEPS} steps are not drawn; this one has {count} and runs all the same")
    plan = recipe.resolve(frame_of(model.model_sampling), steps.sigmas)
    table, inner, text = None, [], ""
    if isinstance(plan, Plan):
        values, rows, columns = coefficient_table(plan)
        table = {"rows": rows, "columns": columns, "values": [[_number(v) for v in row] for row in values.tolist()]}
        inner = [[s.step, s.node.sigma] for s in plan.stages if s.node not in plan.nodes]
        text = describe(plan, with_order=False)
    auto, drawn_from = auto_words(recipe if by_auto else None, steps.auto), basis(model, steps)
    return {
        "label": recipe.label, "recipe": recipe.to_json(), "nfe": plan.nfe, "peak_latents": plan.peak_latents,
        "stochastic": plan.stochastic, "biased": plan.biased, "steps": count,
        "sigmas": [_number(n.sigma) for n in plan.nodes], "lambdas": [_number(n.lambda_) for n in plan.nodes],
        "inner": inner, "table": table, "text": f"{auto}\n\n{text or plan.describe()}".lstrip(),
        "citations": recipe.cite(), "basis": {**drawn_from, "text": f"{auto} {drawn_from['text']}".lstrip()},
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
