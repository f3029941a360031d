"""Decoder layer 0 of the families whose layers are known part by part, computed for what the method reads alone.

Of the attention matrix the rows of query tokens are computed, and only the attended vision tokens go through the rest
of the layer. The samples of a batch stand one after the other in a single row of tokens, each with its own positions,
and attention is computed sample by sample: there is no padding, so none can be attended to and none is paid for."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface

from scalselect_ray.vlm.layers import ImageInputs, Reading, query_rows, vision_rows
from scalselect_ray.vlm.prepare import Prepared
from scalselect_ray.vlm.probe import attended, attention_output, attention_received

_CAPTURE = "scalselect_capture"
_PROVEN = (
    "LlamaDecoderLayer",
    "MistralDecoderLayer",
    "Qwen2DecoderLayer",
    "Qwen2VLDecoderLayer",
    "Qwen2_5_VLDecoderLayer",
    "Qwen3VLTextDecoderLayer",
)
"""Attention, then an MLP, each after a norm and beside a residual: what `AttendedRows` computes."""


def is_proven(layer: nn.Module) -> bool:
    """Whether a decoder layer is made of the parts that are computed here."""
    return type(layer).__name__ in _PROVEN


class _Projections(NamedTuple):
    query_HTD: torch.Tensor  # T = tokens of the batch
    key_KTD: torch.Tensor
    value_KTD: torch.Tensor
    scaling: float
    sliding_window: int | None


def _capture(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **settings: Any
) -> Any:
    """Stands in for an attention function: keeps queries, keys and values as the model's own code makes them."""
    module.captured = _Projections(query[0], key[0], value[0], settings["scaling"], settings.get("sliding_window"))  # type: ignore[assignment]
    return query.transpose(1, 2), None


AttentionInterface.register(_CAPTURE, _capture)


class AttendedRows:
    """See the head of this module. Changes the model: it can do nothing else afterwards."""

    def __init__(self, model: Any, images: ImageInputs) -> None:
        self._model, self._images = model, images
        text = model.language_model
        self._rotary, self._layer, self._embed = text.rotary_emb, text.layers[0], model.get_input_embeddings()
        self._output_projection = self._layer.self_attn.o_proj
        self._layer.self_attn.o_proj = nn.Identity()  # applied below, to the attended tokens only
        self._layer.self_attn.config._attn_implementation = _CAPTURE

    def read(self, samples: Sequence[Prepared], threshold: float) -> list[Reading]:
        """The device is waited for twice: for the attention that decides which tokens go on, and for the features."""
        hidden_TE, projections = self._project(samples)
        spans = [
            range(stop - len(sample.input_ids), stop) for sample, stop in zip(samples, _stops(samples), strict=True)
        ]
        vision = [vision_rows(sample) for sample in samples]
        received = self._received(samples, projections, spans, vision)
        attended_rows = [
            vision_V[attended(received_V, threshold)] for vision_V, received_V in zip(vision, received, strict=True)
        ]

        contexts = []
        for span, rows_A in zip(spans, attended_rows, strict=True):
            query_HSD, key_KSD, value_KSD = (tensor[:, span.start : span.stop] for tensor in projections[:3])
            contexts.append(
                attention_output(query_HSD, key_KSD, value_KSD, rows_A, projections.scaling, projections.sliding_window)
            )
        # The rest of the layer works token by token: only the attended vision tokens go through it.
        positions = torch.cat([rows_A + span.start for span, rows_A in zip(spans, attended_rows, strict=True)])
        output_AE = hidden_TE[self._images.sent(positions)] + self._output_projection(torch.cat(contexts))
        output_AE = output_AE + self._layer.mlp(self._layer.post_attention_layernorm(output_AE))
        parts = output_AE.float().split([len(rows_A) for rows_A in attended_rows])
        features = torch.stack([part_AE.mean(dim=0) for part_AE in parts]).cpu().numpy()
        return list(map(Reading, received, attended_rows, features))

    def received(self, sample: Prepared) -> torch.Tensor:
        _, projections = self._project([sample])
        (received_V,) = self._received([sample], projections, [range(len(sample.input_ids))], [vision_rows(sample)])
        return received_V

    def _project(self, samples: Sequence[Prepared]) -> tuple[torch.Tensor, _Projections]:
        """The input of layer 0 (T, E), and what its attention makes of it."""
        hidden_TE = self._embeddings(samples)
        positions = torch.from_numpy(np.concatenate([sample.position_ids for sample in samples], axis=1))
        position_ids = self._images.sent(positions)
        rotary = self._rotary(hidden_TE[None], position_ids if len(position_ids) == 1 else position_ids[:, None])
        self._layer.self_attn(
            self._layer.input_layernorm(hidden_TE[None]), position_embeddings=rotary, attention_mask=None
        )
        projections: _Projections = self._layer.self_attn.captured
        del self._layer.self_attn.captured
        return hidden_TE, projections

    def _embeddings(self, samples: Sequence[Prepared]) -> torch.Tensor:
        """The input of layer 0: text embeddings, with the projected image features in place of the placeholders.
        (T, E)."""
        input_ids = torch.from_numpy(np.concatenate([sample.input_ids for sample in samples]))
        positions = torch.nonzero(input_ids == self._model.config.image_token_id)[:, 0]
        hidden_TE = self._embed(self._images.sent(input_ids.clamp(max=self._embed.num_embeddings - 1)))
        hidden_TE[self._images.sent(positions)] = self._image_features(samples).to(hidden_TE.dtype)
        return cast(torch.Tensor, hidden_TE)

    def _image_features(self, samples: Sequence[Prepared]) -> torch.Tensor:
        """The projected image features of all samples, one after the other. Images that are one object pass the vision
        tower once."""
        distinct = list({id(sample.images): sample for sample in samples}.values())
        images = self._images(distinct)
        features = torch.cat(tuple(self._model.get_image_features(**images, return_dict=True).pooler_output))
        if len(distinct) == len(samples):
            return features
        counts = [int((sample.input_ids == self._model.config.image_token_id).sum()) for sample in distinct]
        parts = dict(zip((id(sample.images) for sample in distinct), torch.split(features, counts), strict=True))
        return torch.cat([parts[id(sample.images)] for sample in samples])

    def _received(
        self,
        samples: Sequence[Prepared],
        projections: _Projections,
        spans: Sequence[range],
        vision: Sequence[torch.Tensor],
    ) -> list[torch.Tensor]:
        """The attention that each vision token of each sample receives, (V,) a sample, on the CPU."""
        received = []
        for sample, span, vision_V in zip(samples, spans, vision, strict=True):
            query_HSD, key_KSD = (tensor[:, span.start : span.stop] for tensor in projections[:2])
            received.append(
                attention_received(
                    query_HSD,
                    key_KSD,
                    query_rows(sample),
                    vision_V,
                    projections.scaling,
                    projections.sliding_window,
                )
            )
        return list(torch.split(torch.cat(received).cpu(), [len(vision_V) for vision_V in vision]))


def _stops(samples: Sequence[Prepared]) -> list[int]:
    """Where each sample ends in the row of tokens of its batch."""
    return list(accumulate(len(sample.input_ids) for sample in samples))
