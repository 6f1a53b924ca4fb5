"""The benchmark's numbers: stock samplers give in its harness what they give in ComfyUI's own pipeline."""


def test_the_benchmarks_peers_are_the_hosts_own_samplers(numbers):
    """On flow models stock uni_pc moves the last sigma from 0 to 0.001, and the host then divides the sample by 1 - 0.001."""
    found = numbers("peers.peers")
    assert len(found) >= 2 * 14 and {"eps dpmpp_2m", "eps uni_pc_bh2", "flow deis"} <= set(found)
    limits = {"flow uni_pc": 1.1e-3, "flow uni_pc_bh2": 1.1e-3}
    assert not {name: value for name, value in found.items() if not value <= limits.get(name, 2e-5)}
