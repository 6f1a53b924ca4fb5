"""Masks, img2img, slices and batches in a real ComfyUI's own process."""

import pytest

FORMS = ("eps", "v", "flow")


def over(values, limit):
    return {name: value for name, value in values.items() if not value <= limit}


@pytest.mark.parametrize("form", FORMS)
def test_a_mask_keeps_the_rest(numbers, form):
    found = {name: run for name, run in numbers("latents.given_latents")["mask"].items() if name.startswith(f"{form} ")}
    assert len(found) == 10
    for name, run in found.items():
        assert run["kept"] <= 1e-5 and run["changed"] > 0.05, name


@pytest.mark.parametrize("form", FORMS)
def test_img2img(numbers, form):
    run = numbers("latents.given_latents")["img2img"][form]
    assert run["finite"] and run["steps"] == 6 and run["tail"], "the last 6 of 12 steps"
    assert run["euler"] <= 1e-4
    assert 0.01 < run["near"] < 0.75 * run["far"], "half the noise keeps the picture near"


@pytest.mark.parametrize("form", FORMS)
def test_two_slices_are_the_whole_run(numbers, form):
    found = numbers("latents.given_latents")["slices"]
    assert found[form] <= 1e-4
    others = {name: good for name, good in found.items() if name.startswith(f"{form} ")}
    assert len(others) == 10 and all(others.values()), others


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_is_its_samples(numbers, form):
    found = {name: value for name, value in numbers("latents.given_latents")["batch"].items() if name.startswith(f"{form} ")}
    assert len(found) == 5 and not over(found, 1e-4)
