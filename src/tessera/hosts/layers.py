"""The layer socket: at a boundary between decoder layers tokens are dropped or merged, and hidden states changed.

Hooks only. One on the language model begins or continues a sequence; one per decoder layer asks the parts and re-maps the layer's
arguments; one behind the last layer puts the tokens that are left back to their places, so that logits, labels and loss keep
their shapes (dropped places hold zeros).

Legend: B rows, S tokens of the prompt, K tokens left at a layer, E width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor, nn

from tessera.errors import UserError
from tessera.hosts.boundary import Boundary
from tessera.hosts.caches import attach_sequence, sequence_of
from tessera.hosts.captures import install_taps
from tessera.hosts.context import PlugContext
from tessera.hosts.forward import ForwardPass
from tessera.hosts.inputs import replace
from tessera.hosts.layer_inputs import layer_arguments
from tessera.hosts.part import HostPart, name_of
from tessera.hosts.reader import PartTaps, Probes, image_lengths
from tessera.hosts.sequence import Sequence, TokenStage


class LayerSocket:
    """The hooks of one session."""

    def __init__(self, context: PlugContext) -> None:
        """Raises `UserError` for parts that name layers which do not exist."""
        self.context = context
        self.taps: list[PartTaps] = []
        self.probes = Probes(context.states)
        count = len(context.architecture.layers)
        self.selecting: list[list[int]] = [[] for _ in range(count)]
        self.transforming: list[list[int]] = [[] for _ in range(count)]
        for number, part in enumerate(context.parts):
            wanted = part.boundaries(context.host)
            for layer in range(count) if wanted is None else sorted(wanted):
                if not 0 <= layer < count:
                    title = context.host.title
                    raise UserError(f"{name_of(part)}: there is no layer {layer}; {title} has layers 0 to {count - 1}.")
                if type(part).select is not HostPart.select:
                    self.selecting[layer].append(number)
                if type(part).transform is not HostPart.transform:
                    self.transforming[layer].append(number)

    def tap(self, undo: ExitStack) -> None:
        """Installs the taps that the parts want, until `undo` is closed."""
        self.taps = install_taps(self.context, undo)

    def install(self, undo: ExitStack) -> None:
        """Installs the hooks until `undo` is closed: on layers where a part may act, and on all behind a possible drop."""
        architecture = self.context.architecture
        first = next((layer for layer, parts in enumerate(self.selecting) if parts), len(self.selecting))
        undo.callback(architecture.language_model.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
        undo.callback(architecture.language_model.register_forward_hook(self._end, with_kwargs=True).remove)
        for number, layer in enumerate(architecture.layers):
            if number >= first or self.transforming[number]:
                undo.callback(layer.register_forward_pre_hook(self._boundary(number), with_kwargs=True).remove)
        if first < len(self.selecting):
            undo.callback(architecture.layers[-1].register_forward_hook(self._put_back, prepend=True).remove)
            language_model: Any = architecture.language_model
            if hasattr(language_model, "_deepstack_process"):
                replace(language_model, "_deepstack_process", self._deepstack(language_model._deepstack_process), undo)

    def close(self) -> None:
        """Takes out what was installed on demand; before parts take out what they have installed."""
        self.probes.close()

    # One forward

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        context, state = self.context, self.context.states.own()
        cache: Any = kwargs.get("past_key_values")
        embeds = kwargs.get("inputs_embeds")
        tokens: Any = embeds if embeds is not None else kwargs.get("input_ids", args[0] if args else None)
        rows, length = tokens.shape[:2]
        known = sequence_of(cache)
        if known is not None and (length == 1 or int(cache.get_seq_length()) > 0):
            self._continue(known, length)
            return
        if cache is not None and length > 1 and len(cache.layers) and _filled(cache):
            raise UserError("this cache was filled before the parts were plugged in: begin the generation inside the context.")
        prompt = state.prompt
        visual = prompt.visual(rows, length, embeds is not None, tokens.device)
        real = prompt.real(visual, kwargs.get("attention_mask"))
        sequence = Sequence(
            length=length,
            visual=visual,
            real=real,
            query=prompt.query(visual, real),
            layers=len(context.architecture.layers),
            session=context.session,
            has_visual=bool(visual.any()),
            images=prompt.latest(),
            counts=partial(image_lengths, context.host.model, context.architecture),
        )
        state.current, state.prefilled = ForwardPass(sequence, True, sequence.root), sequence
        caller, given, named = prompt.call or (module, args, kwargs)
        state.example = (caller, given, {name: value for name, value in named.items() if name != "past_key_values"})
        prompt.forget()
        if cache is not None:
            attach_sequence(cache, sequence)
            context.caches.add(cache)

    def _continue(self, sequence: Sequence, length: int) -> None:
        state, session = self.context.states.own(), self.context.session
        if length > 1 and state.prompt.brings_images():
            raise UserError(
                "images behind a filled cache (a later turn, or a prefill in chunks) are not supported while parts are "
                "plugged in: give the full conversation in one prompt."
            )
        if sequence.session is not session:
            if sequence.dropped:
                raise UserError("this cache was filled while other parts were plugged in, and they dropped tokens: begin anew.")
            sequence.session = session
        state.prompt.forget()
        state.current = ForwardPass(sequence, False, sequence.root)

    def _end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        current = self.context.current
        if current is None or not current.prefill:
            return
        for value in output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else ():
            if hasattr(value, "get_mask_sizes") and hasattr(value, "layers") and sequence_of(value) is None:
                attach_sequence(value, current.sequence)
                self.context.caches.add(value)

    # One boundary

    def _boundary(self, layer: int) -> Callable[..., Any]:
        transforming, context = self.transforming[layer], self.context

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            current = context.current
            if current is None:
                return None
            if current.prefill:
                return self._prefill(layer, current, args, kwargs)
            stage = current.sequence.stages[layer]
            if not transforming and (stage.full or _as_it_is(stage, layer, kwargs)):
                return None
            given = args[0] if args else kwargs["hidden_states"]
            boundary = Boundary(context, self.taps, self.probes, layer, current, stage, given, kwargs)
            boundary.transform(transforming)
            return self._arguments(boundary, given, args)

        return hook

    def _prefill(self, layer: int, current: ForwardPass, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        sequence, replayed = current.sequence, self.context.states.here().replayed
        given = args[0] if args else kwargs["hidden_states"]
        entered = sequence.stages[layer - 1] if layer else sequence.root
        boundary = Boundary(self.context, self.taps, self.probes, layer, current, entered, given, kwargs)
        boundary.transform(self.transforming[layer])
        if sequence.has_visual and layer in current.applied:
            boundary.again()
        elif sequence.has_visual and replayed is not None:
            boundary.replay(replayed)
        elif sequence.has_visual and self.selecting[layer]:
            boundary.select(self.selecting[layer])
        if sequence.stages[layer] is not boundary.stage:
            sequence.enter(layer, boundary.stage)
        current.stage = boundary.stage
        return self._arguments(boundary, given, args)

    def _arguments(self, boundary: Boundary, given: Tensor, args: tuple[Any, ...]) -> Any:
        kwargs = boundary.kwargs
        if not boundary.stage.full:
            kwargs = layer_arguments(
                self.context.architecture, boundary.current, boundary.layer, boundary.stage, boundary.hidden, kwargs
            )
        elif boundary.hidden is given:
            return None
        return ((boundary.hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": boundary.hidden})

    # Behind the layers

    def _put_back(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        current = self.context.current
        if current is None or not current.prefill or current.sequence.stages[-1].full:
            return None
        index = current.sequence.stages[-1].index
        hidden = output[0] if isinstance(output, tuple) else output
        full = hidden.new_zeros(hidden.shape[0], current.sequence.length, hidden.shape[-1])
        full = full.scatter(1, index[..., None].expand_as(hidden), hidden)
        return (full, *output[1:]) if isinstance(output, tuple) else full

    def _deepstack(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Features of the tower's earlier blocks go to the visual tokens that are left."""

        def process(hidden_states: Tensor, visual_pos_masks: Tensor, visual_embeds: Tensor) -> Tensor:
            current = self.context.current
            if current is None or not current.prefill or current.stage.full or hidden_states.shape[1] == current.sequence.length:
                return original(hidden_states, visual_pos_masks, visual_embeds)
            stage = current.stage
            mask = visual_pos_masks.to(stage.index.device)
            number = (mask.flatten().cumsum(0) - 1).view_as(mask).gather(1, stage.index)
            here = mask.gather(1, stage.index) & stage.present
            return original(hidden_states, here, visual_embeds[number[here].to(visual_embeds.device)])

        return process


def _as_it_is(stage: TokenStage, layer: int, kwargs: Mapping[str, Any]) -> bool:
    """Whether a decoding step's arguments fit a layer that holds fewer tokens: no mask, no window, no position that moved."""
    if stage.ragged or stage.shift is not None or kwargs.get("attention_mask") is not None:
        return False
    return not getattr(kwargs["past_key_values"].layers[layer], "is_sliding", False)


def _filled(cache: Any) -> bool:
    return bool(getattr(cache.layers[0], "is_initialized", False)) and int(cache.get_seq_length()) > 0
