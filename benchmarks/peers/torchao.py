"""torchao's PT2E with litert-torch's own quantizer, on the exported PyTorch program."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks import peers


def quantize(dynamic: bool, source: Path, file: Path) -> None:
    """As litert-torch's documentation has it: per-channel weights; static is calibrated on every sample."""
    import litert_torch
    import torch
    from litert_torch.quantize import pt2e_quantizer
    from litert_torch.quantize.quant_config import QuantConfig
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    settings = pt2e_quantizer.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    quantizer = pt2e_quantizer.PT2EQuantizer().set_global(settings)
    prepared = prepare_pt2e(torch.export.load(source / "float.pt2").module(), quantizer)
    samples = [tuple(map(torch.from_numpy, sample.values())) for sample in peers.samples(source)]
    with torch.no_grad():
        for sample in samples[:1] if dynamic else samples:
            prepared(*sample)
    converted = convert_pt2e(prepared, fold_quantize=False)
    litert_torch.convert(converted, samples[0], quant_config=QuantConfig(pt2e_quantizer=quantizer)).export(str(file))


FILES: dict[str, peers.Write] = {
    "static.tflite": partial(quantize, False),
    "dynamic.tflite": partial(quantize, True),
}

if __name__ == "__main__":
    import litert_torch.quantize.pt2e_quantizer  # noqa: F401
    import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401  # before the clock starts

    peers.main(FILES, ["torchao", "litert-torch", "torch"])
