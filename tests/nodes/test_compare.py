"""FewStep Compare: what it counts and measures is what happens, and its picture is labelled."""

import csv
import io

import fewstep
import pytest
import torch
from fewstep.nodes.compare import FewStepCompare, short_label, step_counts
from fewstep.nodes.compare_report import Cell, grid_picture
from fewstep.samplers import Recipe
from fewstep.samplers.errors import OptionError

CLASSES = fewstep.NODE_CLASS_MAPPINGS


class Vae:
    """Shows the first channels of the latent."""

    def decode(self, samples):
        return samples.movedim(1, -1)[..., :3].clamp(0, 1)


def sampler(node, **widgets):
    defaults = {n: s["default"] for n, (_, s) in CLASSES[node].INPUT_TYPES()["required"].items()}
    return CLASSES[node]().build(**{**defaults, **widgets})[0]


@pytest.fixture
def compare(host, text):
    model = host.demo_checkpoint("eps")[0]

    def run(steps="4, 8", reference_steps=200, **samplers):
        latent = {"samples": torch.zeros(2, 4, 8, 8)}
        found = FewStepCompare().compare(model, text("7"), text(""), latent, Vae(), 1, 1.0, steps, "uniform_lambda", reference_steps, **samplers)
        image, table, numbers = found["result"]
        return image, table, list(csv.DictReader(io.StringIO(numbers))), model.model.diffusion_model

    return run


def test_better_solvers_and_more_steps_come_nearer_to_the_reference(compare):
    """The model's ODE is known: a first-order method halves its error with half the step, UniPC is far better."""
    image, table, rows, net = compare(sampler_1=sampler("FewStepDDIM"), sampler_2=sampler("FewStepUniPC"), sampler_3=None, steps="10, 20")
    assert [(r["sampler"], r["steps"], r["evaluations"]) for r in rows] == [
        ("reference: unipc", "200", ""), ("1: ddim", "10", "10"), ("1: ddim", "20", "20"), ("2: unipc", "10", "10"), ("2: unipc", "20", "20")]
    ddim_10, ddim_20, unipc_10, unipc_20 = (float(r["difference"]) for r in rows[1:])
    assert 1.7 < ddim_10 / ddim_20 < 2.5 and unipc_10 < ddim_10 / 3 and unipc_20 < unipc_10 / 2
    assert net.calls == 200 + 10 + 20 + 10 + 20 and all(float(r["seconds_per_step"]) > 0 for r in rows[1:])
    assert table.splitlines()[0].split() == ["sampler", "steps", "evaluations", "seconds", "per", "step", "difference", "difference", "by", "evaluation", "error"]
    for row, steps in zip(rows[1:], (10, 20, 10, 20), strict=True):
        curve = [float(v) for v in row["difference_by_evaluation"].split()]
        assert len(curve) == steps and curve[0] < 1e-5 < curve[-1], "all start from the same noise"
        assert curve[-1] < 0.2 and max(curve) == pytest.approx(max(curve[1:]))
    assert image.ndim == 4 and image.shape[-1] == 3 and 0.05 < float(image.mean()) < 0.95


def test_a_combination_that_cannot_run_is_an_empty_cell_with_its_reason(compare):
    third = sampler("FewStepDPMSolverMultistep", order=3)
    _, _, rows, _ = compare(sampler_1=third, steps="2, 6", reference_steps=0)
    assert "order" in rows[0]["error"] and rows[0]["evaluations"] == "" and rows[1]["error"] == "" and rows[1]["difference"] == ""
    assert rows[1]["sampler"] == "1: dpm_solver_multistep(order=3)"


def test_evaluations_are_counted_and_not_believed(compare):
    _, _, rows, net = compare(sampler_1=sampler("FewStepDEISRungeKutta", tableau="2heun"), sampler_2=sampler("FewStepDPMSolverAdaptive"),
                              steps="6", reference_steps=0)
    assert int(rows[0]["evaluations"]) == 11 and int(rows[1]["evaluations"]) > 6
    assert net.calls == sum(int(r["evaluations"]) for r in rows)


def test_other_samplers_take_part_uncounted(compare, host):
    def sample_plain(model, x, sigmas, extra_args=None, callback=None, disable=None):
        return x * 0 + 1

    _, _, rows, _ = compare(sampler_2=host.make_sampler(sample_plain, {}), steps="3", reference_steps=0)
    assert rows[0]["sampler"].startswith("2: ") and rows[0]["evaluations"] == "" and rows[0]["error"] == ""


def test_bad_input_is_named(compare):
    with pytest.raises(OptionError, match="sampler_1"):
        compare()
    for bad in ("", "0", "x", "1,2,3,4,5,6,7", "1001"):
        with pytest.raises(OptionError, match="steps is"):
            step_counts(bad)
        assert "steps is" in FewStepCompare.VALIDATE_INPUTS(bad)
    assert step_counts("8, 4 8") == (8, 4) and FewStepCompare.VALIDATE_INPUTS("4") is True


def test_labels_are_short():
    assert short_label(Recipe("unipc", {"order": 3, "variant": "bh2"}).corrected("time_shift")) == "unipc(order=3) + time_shift"


@pytest.mark.parametrize(("shape", "size"), [((64, 64, 3), (192, 192)), ((1024, 512, 3), (256, 512)), ((300, 200, 3), (200, 300))])
def test_the_picture_holds_every_run_at_its_place(shape, size):
    red, blue = (torch.zeros(shape, dtype=torch.uint8) for _ in range(2))
    red[..., 0], blue[..., 2] = 255, 255
    cells = [Cell("a", 4, 4, 0.1, 0.2, red.numpy()), Cell("a", 8, 8, 0.1, 0.2, blue.numpy()), Cell("b", 8, 8, 0.1, 0.2, red.numpy())]
    colours = grid_picture(cells).getcolors(10**7)
    count = {colour: n for n, colour in colours}
    assert count[(255, 0, 0)] == 2 * size[0] * size[1] and count[(0, 0, 255)] == size[0] * size[1]
    text = grid_picture([cell._replace(label=f"{cell.label} long name") for cell in cells])
    assert text.tobytes() != grid_picture(cells).tobytes()
