"""litert-torch's converter, made to take a graph as it stands, work in a copied process, and say where it fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from edgedl.core import TargetError
from edgedl.origin import origin


def convert(
    graph: torch.nn.Module,
    inputs: tuple[torch.Tensor, ...],
    names: tuple[Sequence[str], Sequence[str]],
    made_of: Mapping[Any, Callable[..., Any]],
) -> bytes:
    """A `.tflite` file of a graph, with the `names` of its inputs and outputs, for inputs of these shapes.

    `made_of` are decompositions of operators that take the place of the converter's own. Raises `TargetError`, which
    names the operator where that is known.
    """
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")  # which a notebook shows wherever it is written
    import litert_torch

    with _conversion_of_ours(*map(list, names)) as lowered, _decomposing(made_of), _one_thread():
        try:
            made = litert_torch.convert(graph, inputs)
        except (RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
            raise TargetError(f"litert-torch cannot convert {failed(error, lowered)}") from error
        content: bytes = made.model_content()
        return content


@contextmanager
def _conversion_of_ours(inputs: list[str], outputs: list[str]) -> Iterator[list[torch.fx.Node]]:
    """Makes the converter take the graph's quantization as it stands, the task's names, and modules' paths as names.

    Gives a list of the operators that it has come to.

    In its default mode litert-torch leaves float kernels between Q/DQ pairs; in the modes that its
    public options reach it makes scales of its own where it finds none, and int8 inputs and outputs.
    The strict mode does neither. No public option reaches it, nor the names, hence the substitution.
    It calls a tensor by the classes of all modules around it, which can take up a third of a small file. And it tells
    constants apart by their place in memory alone, where another may lie after the first is gone: here all are kept
    (https://github.com/google-ai-edge/litert-torch/issues/1061).
    """
    from litert_torch._convert import litert_converter
    from litert_torch.backend import debuginfo, inline_consts

    api = litert_converter.converter_api_ext

    class Ours:
        def __getattr__(self, name: str) -> Any:
            return getattr(api, name)

        @staticmethod
        def ConvertToTFLConfig() -> Any:
            config = api.ConvertToTFLConfig()
            config.strict_qdq_mode = True
            return config

        @staticmethod
        def set_signature(operation: Any, *, signature_name: str, **_: Any) -> None:
            api.set_signature(operation, signature_name=signature_name, input_names=inputs, output_names=outputs)

    kept: list[torch.Tensor] = []
    by_classes, by_place = debuginfo.build_mlir_debuginfo, inline_consts._ConstantFingerprint

    class Kept(by_place):  # type: ignore[misc,valid-type]
        @classmethod
        def from_tensor(cls, tensor: torch.Tensor) -> Any:
            kept.append(tensor)
            return by_place.from_tensor(tensor)

    lowered: list[torch.fx.Node] = []

    def named(node: torch.fx.Node) -> str | None:
        lowered.append(node)
        return _module_path(node)

    litert_converter.converter_api_ext, debuginfo.build_mlir_debuginfo = Ours(), named
    inline_consts._ConstantFingerprint = Kept
    try:
        yield lowered
    finally:
        litert_converter.converter_api_ext, debuginfo.build_mlir_debuginfo = api, by_classes
        inline_consts._ConstantFingerprint = by_place


def _module_path(node: torch.fx.Node) -> str | None:
    """The innermost module that a node was made in; behind the semicolon the converter adds numbers and more paths."""
    around = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return f"{around[-1]};" if around and around[-1] else None


@contextmanager
def _decomposing(made_of: Mapping[Any, Callable[..., Any]]) -> Iterator[None]:
    """Makes the converter open operators by these functions."""
    from litert_torch.fx_infra import decomp

    # The converter has entries of its own for these operators, which the caller may need after.
    tables = decomp._pre_convert_decomp, decomp._pre_lower_decomp
    overloads = [overload for operator in made_of for overload in decomp._get_ops(operator)]
    before = [{overload: table[overload] for overload in overloads if overload in table} for table in tables]
    for operator, function in made_of.items():
        decomp.add_pre_convert_decomp(operator, function)
    try:
        yield
    finally:
        for operator in made_of:
            decomp.remove_pre_lower_decomp(operator)
        for table, entries in zip(tables, before, strict=True):
            for overload, function in entries.items():
                table[overload] = function


@contextmanager
def _one_thread() -> Iterator[None]:
    """Lets JAX, which litert-torch lowers by, verify graphs without its pool of threads.

    Such a pool has none in a copy of the process (`child.py`), where whoever waits for it waits for ever.
    """
    from jax._src.interpreters import mlir

    make = mlir.make_ir_context

    def make_without_threads() -> Any:
        context = make()
        context.enable_multithreading(False)
        return context

    mlir.make_ir_context = make_without_threads
    try:
        yield
    finally:
        mlir.make_ir_context = make


def failed(error: Exception, lowered: list[torch.fx.Node]) -> str:
    """The operator at which a conversion has failed, as far as that is known, and why."""
    last = lowered[-1] if lowered else None
    at_last = last is not None and f"%{last.name} " in str(error)
    return f"{origin(last) if last is not None and at_last else 'the network'}: {first_line(error)}"


def first_line(error: Exception) -> str:
    """What an error says in its first line; its kind if it says nothing."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
