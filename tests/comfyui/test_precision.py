"""Half precision, offloaded weights and LoRAs in a real ComfyUI."""


def test_models_of_other_precisions_and_places(numbers):
    found = numbers("precision.precisions")
    assert len(found) == 3 * (6 * 9 + 2)
    for name, run in found.items():
        assert run["finite"] and run["dtype"] == "torch.float32", name
        # stock Euler says how much the model itself changes; a method of high order amplifies that
        assert run["off"] <= 15 * run["euler"] + 1e-6, (name, run)
        if "float64" in name or "elsewhere" in name:
            assert run["off"] <= 1e-6, name


def test_a_lora_of_the_stock_loader_is_the_change_of_the_weights(numbers):
    for form, run in numbers("precision.lora").items():
        assert run["layers"] >= 4 and run["effect"] > 0.05, form
        assert run["merged"] <= 1e-4 and run["undone"] == 0, form
