"""Any decoder layer of any family, read while the model's own forward runs.

The model is cut after the layer that is read. Its attention functions are stood in for by one that computes the same
and, in that layer, keeps what the vision tokens receive: whatever the model does before, between and after (sliding
windows, masks that look both ways over an image, capped logits, more norms, experts) is the model's own code. Samples
pass one by one, so there is no padding."""

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from scalselect_ray.errors import ModelError
from scalselect_ray.vlm.layers import ImageInputs, Reading, query_rows, vision_rows
from scalselect_ray.vlm.prepare import Prepared
from scalselect_ray.vlm.probe import attended
from scalselect_ray.vlm.watched_attention import Watch


class _LayerDone(Exception):
    """The layer has been read: what comes after it is not computed."""


class OwnForward:
    """See the head of this module. `layer` is the last one that the model has."""

    def __init__(self, model: Any, images: ImageInputs, layer: int) -> None:
        self._model, self._images = model, images
        self._taken = set(inspect.signature(model.forward).parameters)
        self._layer = decoder_layers(model)[layer]
        self._attention: Any = getattr(self._layer, "self_attn", None)
        if self._attention is None:
            raise ModelError(
                f"layer {layer} of the language model ({type(self._layer).__name__}) has no attention of tokens to "
                "tokens: set extractor.layer to first_attention"
            )
        self._output: torch.Tensor | None = None
        self._layer.register_forward_hook(self._keep)

    def read(self, samples: Sequence[Prepared], threshold: float) -> list[Reading]:
        """The device is waited for twice a sample."""
        return [self._read_one(sample, threshold) for sample in samples]

    def received(self, sample: Prepared) -> torch.Tensor:
        return self._forward(sample)[0]

    def _read_one(self, sample: Prepared, threshold: float) -> Reading:
        received_V, hidden_SE = self._forward(sample)
        rows_A = vision_rows(sample)[attended(received_V, threshold)]
        feature_E = hidden_SE[rows_A.to(hidden_SE.device)].float().mean(dim=0)
        return Reading(received_V, rows_A, feature_E.cpu().numpy())

    def _forward(self, sample: Prepared) -> tuple[torch.Tensor, torch.Tensor]:
        """What the vision tokens receive (V,), and the layer's output (S, E)."""
        inputs = self._images([sample])
        inputs["input_ids"] = self._images.sent(torch.from_numpy(sample.input_ids))[None]
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if len(sample.position_ids):
            positions = self._images.sent(torch.from_numpy(sample.position_ids))
            inputs["position_ids"] = positions if len(positions) == 1 else positions[:, None]
        watch = Watch(query_rows(sample), vision_rows(sample))
        self._attention.watch = watch
        try:
            self._model(**{name: value for name, value in inputs.items() if name in self._taken}, use_cache=False)
        except _LayerDone:
            pass
        finally:
            del self._attention.watch
        output, self._output = self._output, None
        if output is None or watch.received_V is None:
            raise ModelError(
                f"{type(self._attention).__name__} computes no attention that can be read: set extractor.layer to a "
                "layer with softmax attention"
            )
        return watch.received_V.cpu(), output

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._output = (output[0] if isinstance(output, tuple) else output)[0]
        raise _LayerDone


def decoder_layers(model: Any) -> nn.ModuleList:
    """The decoder layers of the text model. Raises AttributeError where it has none by the usual name."""
    decoder = model.get_decoder()
    layers: nn.ModuleList | None = getattr(decoder, "layers", None)
    return cast(nn.ModuleList, decoder.model.layers) if layers is None else layers  # one with its head around it
