"""The cost of calibrating: what a node says beforehand is what the network is then asked."""

from fewstep.benchmarks import calibration_cost
from fewstep.demo.network import DemoNet


def test_the_evaluations_that_are_written_are_those_of_the_network(monkeypatch):
    seen, forward = [0], DemoNet.forward

    def counting(self, x, *args, **kwargs):
        seen[0] += len(x)
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(DemoNet, "forward", counting)
    monkeypatch.setattr(calibration_cost, "seconds_of_one", lambda form: 1e-9)
    (row,) = calibration_cost.measure("eps", ["FewStepCalibrateMoments"])
    assert 2 * row["evaluations"] == seen[0] > 0, "an evaluation with guidance is two of the network"
    assert row["large"] == row["evaluations"] and row["file bytes"] > 0
    assert 0 < row["share of the model"] < 1
