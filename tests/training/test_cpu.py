"""oneDNN's matrix products in the place of MKL's: the same numbers, whatever lies how in memory."""

import shutil
import subprocess
import sys

import pytest
import torch

from training import cpu

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def always(monkeypatch):
    monkeypatch.setattr(cpu, "ONEDNN_PAYS_FROM", 0)


def lying(kind):
    """A matrix of 12 × 20: by rows, by columns, with gaps, or one number that stands for all."""
    matrix = torch.randn(24, 40)
    kinds = {"rows": matrix[:12, :20].contiguous(), "columns": matrix.T[:20, :12].contiguous().T}
    return (kinds | {"gaps": matrix[::2, ::2], "one": torch.randn(1, 1).expand(12, 20)})[kind]


@needs_onednn
@pytest.mark.parametrize("left", ["rows", "columns", "gaps", "one"])
@pytest.mark.parametrize("right", ["rows", "columns", "gaps", "one"])
def test_products_are_those_of_float64_however_the_matrices_lie(left, right):
    torch.manual_seed(0)
    a, b, bias = lying(left), lying(right).T, torch.randn(24)[::2]
    exact = a.double() @ b.double()
    torch.testing.assert_close(cpu.product(a, b), exact.float())
    torch.testing.assert_close(cpu.biased_product(bias, a, b), (exact + bias).float())
    scaled = cpu.biased_product(bias, a, b, beta=0.5, alpha=2)
    torch.testing.assert_close(scaled, (2 * exact + 0.5 * bias).float())
    wide = torch.randn(90, 40).T  # a weight's gradient: the left matrix is the larger one, and lies by columns
    narrow = torch.randn(90, 7)
    torch.testing.assert_close(cpu.product(wide, narrow), (wide.double() @ narrow.double()).float())
    assert cpu.product(wide, narrow).is_contiguous()
    matrix = torch.randn(12, 12)
    torch.testing.assert_close(cpu.biased_product(matrix, a, b), (exact + matrix).float())
    assert cpu.product(a.double(), b.double()).dtype == torch.float64


def use_counted() -> list[bool]:
    """Put these kernels into torch, on any processor, for good: for a process of its own. Each product adds whether it was theirs."""
    calls, pays = [], cpu.pays
    cpu.ONEDNN_PAYS_FROM, cpu.is_amd = 2**10, lambda: True
    torch.backends.cpu.get_cpu_capability = lambda: "AVX512"
    cpu.pays = lambda a, b: calls.append(pays(a, b)) or calls[-1]
    cpu.use(threads=1)
    return calls


def test_kernels_put_into_torch_give_its_own_losses_and_gradients():
    """In a process of its own: what is replaced there stays replaced."""
    code = """
import torch
from tests.training.test_cpu import use_counted
def run():
    torch.manual_seed(0)
    layer, conv, x = torch.nn.Linear(48, 96), torch.nn.Linear(96, 32, bias=False), torch.randn(4, 50, 48)
    conv(layer(x.requires_grad_()).relu()).square().mean().backward()
    return [x.grad, layer.weight.grad, layer.bias.grad, conv.weight.grad]
expected, calls = run(), use_counted()
for mine, torchs in zip(run(), expected):
    torch.testing.assert_close(mine, torchs, rtol=1e-4, atol=1e-6)
print(sum(calls))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "no warning"
    assert int(done.stdout) == 6, "two products forward, two each backward"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compiled_layers_have_these_kernels_too():
    """In a process of its own. What is registered for torch's own products, compiled code passes by."""
    code = """
import torch
from torch._dynamo.utils import counters
from tests.training.test_cpu import use_counted
from training import compiling
class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(48, 96), torch.nn.Linear(96, 32, bias=False)
    def forward(self, x):
        return self.second(self.first(x).relu())
torch.manual_seed(0)
model, x = torch.nn.Sequential(Layer()), torch.randn(4, 50, 48)
model._no_split_modules = ["Layer"]
def gradients():
    model.zero_grad()
    model(x).square().mean().backward()
    return [p.grad.clone() for p in model.parameters()]
expected, calls = gradients(), use_counted()
compiling.compile_layers(model)
for mine, torchs in zip(gradients(), expected):
    torch.testing.assert_close(mine, torchs, rtol=1e-4, atol=1e-6)
print(counters["stats"]["unique_graphs"], sum(calls))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "5"], (
        "one graph; two products forward, three backward: nothing asks for the input's"
    )
