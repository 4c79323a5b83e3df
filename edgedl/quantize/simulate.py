"""Simulated quantization: from a float module to the graph that every deployed quantized file is held against."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from edgedl import checkpoint, dimensions, graphs, progress, stats
from edgedl.core import Activation, Batch, Split, Task, UsageError, in_batches, num_samples
from edgedl.graph_session import GraphSession
from edgedl.measure import Scored, evaluate
from edgedl.origin import Origin, origin
from edgedl.quantize import forms, mixed, sensitivity
from edgedl.quantize.choose import Candidate, Trial, choose
from edgedl.quantize.corrections import correct, give_headroom
from edgedl.quantize.equalization import equalize
from edgedl.quantize.finish import Floats, finished
from edgedl.quantize.folding import Fold, fold_batch_norms, fold_factors
from edgedl.quantize.integer import DEQUANTIZE, QUANTIZE, IntegerInterpreter, source_layer
from edgedl.quantize.quantizer import ActivationObserver, Grids, TableQuantizer
from edgedl.quantize.recurrent import open_recurrent
from edgedl.quantize.rewrite import REWRITES, rewrite
from edgedl.quantize.schemes import STATIC_FORMS, Form, Granularity, Scheme
from edgedl.torch_session import BATCH_SIZE, TorchSession, named_outputs
from edgedl.torch_tables import keep_tables

NUM_CORRECTING = 64
"""Calibration samples that corrections look at: they estimate means over samples and pixels, and more tell no more."""

NUM_TRIED = 4
"""Samples on which a graph must answer as its network does."""
NUM_TRIED_MASKED = 32
"""The same of a graph with attention: in how many places a mask is too weak depends on the sample."""
SAME_DB = 60.0
"""Float operators in another order agree to 100 dB and more."""
MASKED = (-16.0, -24.0, -32.0, -48.0, -64.0, -128.0, -256.0)
"""What masked scores are lowered by: by as little as serves, since a grid has to span it. e^-16 is a ten-millionth,
but a network may have learned to score what is masked higher than what is not."""

MAX_IN_FLOAT = 3
"""Blocks that a mixture tries to leave in float: with more, it isn't int8 any longer."""


@dataclass(frozen=True)
class Simulation:
    """A network quantized for one scheme.

    `graph` takes any batch size and computes in float on int8 grids: it is what exporters get.
    `session` runs it with the integer arithmetic of kernels: it is what deployed files are held against.
    """

    graph: GraphModule
    task: Task
    scheme: Scheme
    choice: Candidate
    """The calibrator, and the corrections behind it."""
    tried: Mapping[str, Trial]
    form: Form = "int8"
    chosen: Grids = field(default_factory=dict)
    draft: GraphModule | None = None
    """A static graph with all its grids, before weights and biases were put on theirs."""
    _evaluated: dict[Split, Scored] = field(default_factory=dict, repr=False)

    def evaluated(self, split: Split) -> Scored:
        """The simulated network over a whole split."""
        if split not in self._evaluated:
            self._evaluated[split] = evaluate(self.session(), self.task, split)
        return self._evaluated[split]

    def session(self) -> TorchSession:
        """The simulated network, named arrays in and out."""
        return TorchSession(lambda *inputs: self._interpreter().run(*inputs), self.task)

    def activations(self, inputs: Sequence[np.ndarray]) -> list[Activation]:
        """Values inside on one batch, in execution order: the quantized ones, or all if none is quantized."""
        return _recorded(self._interpreter(record=True), inputs)

    @property
    def in_half(self) -> bool:
        """Whether it computes in half precision."""
        return self.form == "fp16" and self.scheme.computes_in_half

    def _interpreter(self, record: bool = False) -> IntegerInterpreter:
        if self.form.endswith("dynamic"):
            return forms.DynamicInterpreter(self.graph, self.scheme, record)
        return IntegerInterpreter(self.graph, self.scheme.runtime, record)

    def output_scales(self) -> dict[str, float]:
        """The int8 step of each output, by name; outputs that are not quantized are missing."""
        (output,) = (node for node in self.graph.graph.nodes if node.op == "output")
        values = output.args[0]
        values = values if isinstance(values, list | tuple) else [values]
        scales = {}
        for name, node in zip(self.task.outputs, values, strict=True):
            if node.target == DEQUANTIZE:
                scales[name] = float(node.args[1])
        return scales

    def grids(self) -> list[dict[str, Any]]:
        """Scale and zero point of every activation in execution order, for the run folder."""
        return [
            {"layer": source_layer(node), "scale": node.args[1], "zero_point": node.args[2]}
            for node in self.graph.graph.nodes
            if node.target == QUANTIZE
        ]

    def float_operators(self) -> dict[str, Origin]:
        """Operators that are in float for want of an int8 form, by the paths that files have for them."""
        return mixed.marked(self.graph) if self.form in STATIC_FORMS else {}

    def rewrites(self) -> dict[str, int]:
        """What was rewritten into operators of the table, in words, and in how many places."""
        return dict(self.graph.meta.get(REWRITES, {}))

    def leaving(self, floats: Floats) -> Simulation:
        """The same network with some operators in float."""
        assert self.draft is not None
        return replace(self, graph=finished(self.draft, self.scheme, floats), _evaluated={})

    def for_kernels_of(self, scheme: Scheme) -> Simulation:
        """The same grids, run by the kernels of another runtime."""
        assert self.draft is not None
        return replace(self, graph=finished(self.draft, scheme), scheme=scheme, _evaluated={})


class Quantization:
    """How a network is to be quantized; the graph for a scheme is made when first asked for, and kept.

    With several `forms`, the best for each target is to be found; else it is of that one. `calibrator`, `corrections`
    and `grids` matter to static forms alone, `group_size` to 4-bit weights, `granularity` to those of 8 bits. `grids`
    are those that were learned, by scheme; activations of other schemes are calibrated. `blocks` are the parts that
    form "mixed" leaves in float. With `float_ops`, operators without an int8 form stay in float instead of being
    refused.

    Of a network that is several graphs, each has a plan of its own in `graphs`, all of one form.
    """

    def __init__(
        self,
        net: torch.nn.Module,
        task: Task,
        calibrator: str = "auto",
        corrections: Sequence[str] | Literal["auto"] = (),
        *,
        forms: Sequence[Form] = ("int8",),
        group_size: int = 32,
        weight_bits: int = 8,
        granularity: Granularity = "channel",
        grids: Mapping[str, Grids] = MappingProxyType({}),
        blocks: Collection[str] = (),
        float_ops: bool = False,
    ) -> None:
        self.net, self.task, self.calibrator, self.corrections = net, task, calibrator, corrections
        self.forms, self.group_size, self.weight_bits = forms, group_size, weight_bits
        self.granularity = granularity
        self.grids, self.blocks, self.float_ops = grids, blocks, float_ops
        self.simulations: dict[str, Simulation] = {}
        self.calibrated: dict[str, Simulation] = {}
        """Static int8, by scheme."""
        self.exported: dict[bool, GraphModule] = {}
        """The float graph, by whether LSTM and GRU are whole: exporting takes long where they are written out."""
        self.graphs = {
            name: Quantization(
                part.module,
                part,
                calibrator,
                corrections,
                forms=forms,
                group_size=group_size,
                weight_bits=weight_bits,
                granularity=granularity,
                float_ops=float_ops,
            )
            for name, part in graphs.tasks(net, task).items()
        }

    @property
    def form(self) -> Form:
        return self.forms[0]

    @property
    def precision(self) -> str:
        return self.form

    @property
    def is_settled(self) -> bool:
        """Whether it says all: with several forms, or a mixture without its blocks, the best is to be found."""
        return len(self.forms) == 1 and (self.form != "mixed" or bool(self.blocks))

    def in_form(self, form: Form, blocks: Collection[str] = ()) -> Quantization:
        """The same network and calibration in one form."""
        other = copy.copy(self)
        other.forms, other.blocks, other.simulations = (form,), blocks, {}
        other.graphs = {name: plan.in_form(form) for name, plan in self.graphs.items()}
        return other

    def evaluated(self, scheme: Scheme, split: Split) -> Scored:
        """The simulated network over a whole split. Raises `UnsupportedOperator` as `simulated` does."""
        if not self.graphs:
            return self.simulated(scheme).evaluated(split)
        sessions = {name: plan.simulated(scheme).session() for name, plan in self.graphs.items()}
        return evaluate(GraphSession(sessions), self.task, split)

    def mixtures(self, scheme: Scheme) -> list[Quantization]:
        """Form "mixed" with the one, two and three blocks in float that static int8 harms most, alone.

        Raises `UsageError` for a network of one block: in float it would be the float network.
        """
        noise = sensitivity.of_parts(self._calibrated(scheme), self.net, self.task)
        if len(noise) < 2:
            raise UsageError("mixed: the network is a single block; there is nothing to leave in float beside it")
        worst = sorted(noise, key=lambda block: noise[block].sqnr_db)
        return [self.in_form("mixed", worst[:count]) for count in range(1, min(len(worst), MAX_IN_FLOAT + 1))]

    def simulated(self, scheme: Scheme) -> Simulation:
        """Raises `UnsupportedOperator` for an operator that is not in the table, where the form is static."""
        key = scheme.runtime or scheme.name
        if key not in self.simulations:
            self.simulations[key] = self._simulated(scheme)
        return self.simulations[key]

    def _simulated(self, scheme: Scheme) -> Simulation:
        if self.form == "int8":
            return self._calibrated(scheme)
        if self.form == "int8 layers":
            return replace(self._calibrated(scheme).leaving(mixed.all_but_weighted), form=self.form)
        if self.form == "mixed":
            kept = frozenset(self.blocks)
            found = self._calibrated(scheme).leaving(lambda graph: mixed.kept(graph, kept))
            return replace(found, graph=forms.halved(found.graph, scheme), form=self.form)
        exported = self._exported(self.form in scheme.whole_recurrent)
        graph = forms.rewritten(exported, self.form, scheme.with_weights(8, self.granularity), self.group_size)
        return Simulation(graph, self.task, scheme, (), {}, self.form)

    def _calibrated(self, scheme: Scheme) -> Simulation:
        """Static int8; schemes of one name share one calibration."""
        if scheme.name not in self.calibrated:
            narrowed = scheme.with_weights(self.weight_bits, self.granularity)
            learned = self.grids.get(scheme.name)
            given = (self.calibrator, self.corrections, learned, self.float_ops, self._exported())
            self.calibrated[scheme.name] = simulate(self.net, self.task, narrowed, *given)
        found = self.calibrated[scheme.name]
        return found if found.scheme.runtime == scheme.runtime else found.for_kernels_of(scheme)

    def _exported(self, whole_recurrent: bool = False) -> GraphModule:
        if whole_recurrent not in self.exported:
            self.exported[whole_recurrent] = export_graph(self.net, self.task, whole_recurrent)
        return copy.deepcopy(self.exported[whole_recurrent])


def simulate(
    net: torch.nn.Module,
    task: Task,
    scheme: Scheme,
    calibrator: str = "auto",
    corrections: Sequence[str] | Literal["auto"] = (),
    grids: Grids | None = None,
    float_ops: bool = False,
    exported: GraphModule | None = None,
) -> Simulation:
    """Static int8, calibrated on the calibration split; what is "auto" is chosen on validation data.

    With `grids`, those of training, nothing is calibrated. `exported` is the network's graph, if it is there already,
    and is changed in place.
    """
    graph = export_graph(net, task) if exported is None else exported
    prepared, _ = prepare(graph, scheme, trained=grids is not None, float_ops=float_ops)
    if grids is not None:
        with torch.no_grad():
            prepared(*_example(task))  # for the observers of weights
        draft = _draft(converted(prepared), grids)
        return Simulation(finished(draft, scheme), task, scheme, ("qat",), {}, chosen=grids, draft=draft)
    inputs = _first(task, NUM_CORRECTING)

    @cache
    def observed(equalized: bool) -> tuple[Mapping[str, ActivationObserver], Converted]:
        graph: GraphModule = copy.deepcopy(prepared)
        if equalized:
            equalize(graph, inputs)
        arrays = task.arrays("calibration")
        with progress.stage(f"calibrate ({scheme.name})", num_samples(arrays)) as step, torch.no_grad():
            for batch in in_batches(arrays, BATCH_SIZE):
                graph(*(torch.from_numpy(np.ascontiguousarray(batch[name])) for name in task.inputs))
                step(num_samples(batch))
            for sizes in dimensions.to_try(task.dynamic):  # grids span what values are at other sizes, too
                graph(*_first(task, NUM_CORRECTING, sizes))
        _check_finite(graph)
        return activation_observers(graph), converted(graph)

    @cache
    def calibrated(calibrator: str, equalized: bool) -> Grids:
        return {name: observer.calibrated(calibrator) for name, observer in observed(equalized)[0].items()}

    def grids_of(candidate: Candidate) -> Grids:
        return calibrated(candidate[0], "equalization" in candidate)

    @cache
    def draft_of(candidate: Candidate) -> GraphModule:
        names = candidate[1:]
        if names[-1:] == ("headroom",):  # it comes last: nothing before it has to be done again
            draft = copy.deepcopy(draft_of(candidate[:-1]))
            give_headroom(draft)
            return draft
        return _draft(observed("equalization" in names)[1], grids_of(candidate), names, inputs)

    @cache
    def graph_of(candidate: Candidate) -> GraphModule:
        return finished(draft_of(candidate), scheme)

    def chosen() -> tuple[Candidate, dict[str, Any]]:
        choice, tried = choose(graph_of, net, task, calibrator, corrections)
        return choice, {name: vars(trial) for name, trial in tried.items()}

    # Trying takes most of the time: a run that goes on makes just what was chosen again.
    begins = [net.state_dict(), task.label, repr(scheme), calibrator, corrections, float_ops, task.inputs]
    choice, found = checkpoint.remembered("choice", begins, chosen, lambda found: graph_of(found[0]))
    tried = {name: Trial(**trial) for name, trial in found.items()}
    return Simulation(graph_of(choice), task, scheme, choice, tried, chosen=grids_of(choice), draft=draft_of(choice))


def prepare(
    graph: GraphModule, scheme: Scheme, trained: bool = False, float_ops: bool = False
) -> tuple[GraphModule, list[Fold]]:
    """A network's graph, in place, with an observer at every value that has a grid, and the batch norms it has folded.

    Where it is `trained` all other parameters stay as the network has them.
    The names of observers depend on the network's structure alone: whoever prepares it again finds them again.
    """
    folds = fold_batch_norms(graph)
    if not trained:
        fold_factors(graph)
    return prepare_pt2e(graph, TableQuantizer(scheme, float_ops)), folds


def activation_observers(prepared: GraphModule) -> dict[str, ActivationObserver]:
    """By name; one that several values share stands there once."""
    return {name: module for name, module in prepared.named_modules() if isinstance(module, ActivationObserver)}


def _check_finite(observed: GraphModule) -> None:
    """Raises `UsageError` for a value that no grid spans: minus infinity, say, where a mask masks."""
    for node in observed.graph.nodes:
        observer = observed.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(observer, ActivationObserver) and not observer.is_finite:
            raise UsageError(
                f"{origin(node.args[0])}, gives values that are not finite, which no int8 grid spans; take a number "
                "such as -16 instead of minus infinity"
            )


def export_graph(net: torch.nn.Module, task: Task, whole_recurrent: bool = False) -> GraphModule:
    """The ATen graph of a module, in evaluation mode, for any batch size; LSTM and GRU are whole, or written out.

    Raises `UsageError` where the graph, whose operators were rewritten, does not answer as the module does.
    """
    keep_tables()
    net = copy.deepcopy(open_recurrent(net, projected_only=whole_recurrent)).eval()
    example, dynamic = _example(task), torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for name, tensor in zip(task.inputs, example, strict=True):
        dynamic[tensor] = dict.fromkeys((0, *task.dynamic.get(name, {})), torch.export.Dim.DYNAMIC)
    try:
        program = torch.export.export(net, example, dynamic_shapes=dynamic)  # type: ignore[arg-type]
    except RuntimeError as error:  # torch's own, of which every kind is one
        if not task.dynamic or "Constraints violated" not in str(error):
            raise
        names = " or ".join(dimensions.by_name(task.dynamic))
        raise UsageError(f"the network is for a fixed {names}; compute with sizes of tensors, not numbers") from error
    graph = _rewritten(net, program, task)
    _check_sizes(net, graph, task)
    return graph


def _rewritten(net: torch.nn.Module, program: ExportedProgram, task: Task) -> GraphModule:
    """What `program` is rewritten to, with masks as weak as can be for the answers of `net`."""
    for masked in MASKED:
        graph = rewrite(program, masked)
        has_softmax = any(node.target is torch.ops.aten.softmax.int for node in graph.graph.nodes)
        inputs = _first(task, NUM_TRIED_MASKED if has_softmax else NUM_TRIED)
        agreement = _agreement_db(_answers(net, inputs, task), _answers(graph, inputs, task))
        if not agreement < SAME_DB:  # what is not finite is told of when values are observed
            return graph
        if not has_softmax:
            break
    scores = f", or score masked places {-MASKED[-1]:.0f} above others" if has_softmax else ""
    raise UsageError(
        f"written in operators that quantize, the network answers otherwise: {agreement:.1f} dB, where the same "
        f"numbers in another order have 100 and more; does it draw random numbers, remember earlier samples{scores}?"
    )


def _answers(module: torch.nn.Module, inputs: Sequence[torch.Tensor], task: Task) -> dict[str, torch.Tensor]:
    """Outputs by name; what a module draws at random is the same each time."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return named_outputs(module(*inputs), task)


def _agreement_db(wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> float:
    """Of the output that is repeated worst; decisions, which a last bit can turn, are not looked at."""
    numbers = [name for name, values in wanted.items() if values.is_floating_point()]
    return min((stats.sqnr_db(wanted[name].numpy(), found[name].numpy()) for name in numbers), default=stats.EXACT_DB)


def _check_sizes(net: torch.nn.Module, graph: GraphModule, task: Task) -> None:
    """Raises `UsageError` where a graph, whose operators were rewritten, has a size in it that is to be any."""
    for sizes in dimensions.to_try(task.dynamic):
        inputs = _first(task, NUM_TRIED, sizes)
        wanted = _answers(net, inputs, task)
        try:
            agreement = _agreement_db(wanted, _answers(graph, inputs, task))
        except (RuntimeError, ValueError, IndexError) as error:  # an operator's, or shapes that differ
            said = str(error).partition("\n")[0]
            raise UsageError(
                f"written in operators that quantize, it does not run at {dimensions.in_words(sizes)}: {said}"
            ) from error
        if agreement < SAME_DB:
            raise UsageError(
                f"written in operators that quantize, it answers otherwise at {dimensions.in_words(sizes)}: one of "
                "them was made for the data's size alone"
            )


def _example(task: Task) -> tuple[torch.Tensor, ...]:
    """Zeros for two samples: an example of one would fix the batch size at one."""
    return tuple(torch.zeros((2, *spec.shape), dtype=getattr(torch, spec.dtype)) for spec in task.inputs.values())


def activations(graph: GraphModule, inputs: Sequence[np.ndarray]) -> list[Activation]:
    """Values of a graph on one batch, in execution order: the quantized ones, or all if none is quantized."""
    return _recorded(IntegerInterpreter(graph, record=True), inputs)


def _recorded(recorder: IntegerInterpreter, inputs: Sequence[np.ndarray]) -> list[Activation]:
    with torch.no_grad():
        recorder.run(*(torch.from_numpy(np.ascontiguousarray(values)) for values in inputs))
    return recorder.quantized or recorder.computed


def _first(task: Task, most: int, sizes: Mapping[str, int] = MappingProxyType({})) -> list[torch.Tensor]:
    """Inputs of the network from the calibration split, at other sizes than those of the data where these are given."""
    arrays = task.arrays("calibration")
    batch: Batch = {name: arrays[name][:most] for name in task.inputs}
    batch = dimensions.resized(batch, task, sizes) if sizes else batch
    return [torch.from_numpy(np.ascontiguousarray(values)) for values in batch.values()]


@dataclass(frozen=True)
class Converted:
    """A q/dq graph whose activations have no grids yet: those of an observer have its number, less than 0, as scale."""

    graph: GraphModule
    observers: Sequence[str]
    """Names; the first has the number -1."""


def converted(prepared: GraphModule) -> Converted:
    """What `prepared` becomes, in its place: converting takes long, and candidates differ in numbers alone."""
    observers = activation_observers(prepared)
    for number, observer in enumerate(observers.values(), 1):
        observer.chosen = (-number, 0)
    return Converted(convert_pt2e(prepared, fold_quantize=False), list(observers))


def _draft(
    template: Converted, grids: Grids, corrections: Sequence[str] = (), inputs: Sequence[torch.Tensor] = ()
) -> GraphModule:
    """A q/dq graph on these grids, corrected, whose weights and biases lie between the points of theirs yet.

    It is not recompiled, which takes long: `finished` makes of a copy what is run.
    """
    graph: GraphModule = copy.deepcopy(template.graph)
    for node in graph.graph.nodes:
        if node.target in (QUANTIZE, DEQUANTIZE) and node.args[1] < 0:
            scale, zero_point = grids[template.observers[-int(node.args[1]) - 1]]
            node.args = (node.args[0], float(np.float32(scale)), zero_point, *node.args[3:])
    correct(graph, inputs, corrections)
    return graph
