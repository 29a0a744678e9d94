import torch

from hetcache_core.offload import HostMemory, on_device


def test_few_layers_lie_on_the_device_at_a_time():
    assert on_device(800, 8) == 400 and on_device(800, 40) == 80
    assert on_device(800, 2) == 800  # all of them


def test_what_is_on_the_host_already_is_kept_as_it_is():
    host, parts = HostMemory(), [torch.ones(3), torch.zeros(2)]
    copied = host.take(parts)
    assert copied.tensors is parts and copied.bytes == 20
    assert all(a is b for a, b in zip(host.bring(copied, torch.device("cpu")), parts, strict=True))
    assert host.fetch_ahead(torch.device("cpu"), lambda: parts) is None
