"""What torch makes anew at each export, kept or left out: it takes longer than the export of a small network itself.

The functions that are replaced are torch's own, not its interface. A version without them exports as it always did.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable
from typing import Any


@functools.cache
def keep_tables() -> None:
    """From now on in this process; to be called before an export, of whatever kind."""
    for change in (
        _keep_onnx_functions,
        _keep_composite_operators,
        _keep_annotations,
        _keep_what_is_translated,
        _leave_other_devices_out,
    ):
        try:
            change()
        except (ImportError, AttributeError):
            pass  # another version of torch: slower, and the same


def _keep_onnx_functions() -> None:
    """torch.onnx reads the sources of some 500 functions to know what they take, at each export."""
    # Registers operators of quantized graphs, which the table would lack if they came after it.
    import torch.ao.quantization.fx._decomposed  # noqa: F401
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    read = functools.cache(ONNXRegistry.from_torchlib)  # by opset

    def from_torchlib(*args: int, **options: int) -> ONNXRegistry:
        kept, registry = read(*args, **options), ONNXRegistry()
        vars(registry).update(vars(kept))
        registry.functions = {target: list(functions) for target, functions in kept.functions.items()}
        return registry

    ONNXRegistry.from_torchlib = staticmethod(from_torchlib)  # type: ignore[method-assign]


def _keep_composite_operators() -> None:
    """torch.export looks all composite operators up, once for each namespace of operators, at each decomposition.

    Once is enough for all namespaces, and what is known stays known until someone registers more of them.
    """
    import torch
    from torch._export import utils
    from torch.export import decomp_utils, exported_program

    collect: Callable[[], set[Any]] = utils._collect_all_valid_cia_ops
    known: dict[int, set[Any]] = {}

    def collect_new() -> set[Any]:
        registered = len(torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd"))
        if registered not in known:
            known.clear()
            known[registered] = collect()
        return set(known[registered])

    for module in (utils, decomp_utils, exported_program):
        module._collect_all_valid_cia_ops = collect_new  # type: ignore[attr-defined]


def _keep_what_is_translated() -> None:
    """torch.onnx traces each program again to decompose it, also one whose operators it translates as they are.

    Such programs are most of those of quantized graphs.
    """
    import operator

    from torch._ops import OpOverload
    from torch.onnx._internal.exporter import _fx_passes

    decompose: Callable[[Any, Any], Any] = _fx_passes.decompose_with_registry

    def decompose_if_need_be(program: Any, registry: Any) -> Any:
        known = {functions[0].fx_target for functions in registry.functions.values()}
        for node in program.graph.nodes:
            if node.op in ("placeholder", "output") or node.target is operator.getitem:
                continue
            target = node.target
            if not isinstance(target, OpOverload) or target not in known or target._schema.is_mutable:
                return decompose(program, registry)
        return program

    _fx_passes.decompose_with_registry = decompose_if_need_be  # type: ignore[assignment]


def _keep_annotations() -> None:
    """`Callable[...]` of collections.abc is made anew each time it is evaluated: 10,000 times in a decomposition."""
    from torch import _ops

    module: Any = _ops
    if module.Callable is Callable:
        module.Callable = typing.Callable


def _leave_other_devices_out() -> None:
    """torch.export gives 500 composite operators functions for 21 kinds of devices, at each decomposition.

    Those of devices that this build of torch knows nothing of are never called.
    """
    import torch
    from torch.export import exported_program

    names = ("_AUTOGRAD_ALIAS_BACKEND_KEYS_TO_OVERRIDE", "_BACKEND_KEYS_TO_OVERRIDE")
    tables = {name: getattr(exported_program, name) for name in names}
    accelerator = torch.accelerator.current_accelerator()
    kinds = {"CPU", "Meta"} | ({accelerator.type.upper()} if accelerator else set())
    for name, keys in tables.items():
        left = [key for key in keys if key.name.removeprefix("Autograd") in kinds]
        if len(left) == len(kinds):  # or it is an accelerator that has another name here
            setattr(exported_program, name, left)
