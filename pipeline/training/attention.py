"""Attention over several sequences in one flattened row, without the mask of the whole row.

Packed documents (sft): a token may see only earlier tokens of its document. transformers' SDPA path enforces
this with a dense L × L mask, which costs O(L²) and rules out SDPA's fast causal kernel. This module computes
attention per document, O(Σ nᵢ²).

Shared prefixes (dpo): the row omits any prefix that an earlier sequence already holds; a token may see the
earlier tokens of its sequence, wherever they lie in the row. Attention is computed for the tokens that each
sequence adds. A CPU takes one sequence after another, O(Σ own · whole), because padding costs time. A GPU
takes all sequences in one call, padded to the longest, O(sequences · most own · longest), because many small
kernels cost more time to launch than padding does.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.utils import is_flash_attn_2_available

from pipeline.errors import UserError

NAME = "packed_documents"
SHARED = "shared_prefixes"


def choose(model_config: Any, use_gpu: bool) -> str:
    """The attention to load a model with: ours, or flash-attention on a GPU if it is installed.

    `eager` for models whose attention has terms that only eager code computes (logit soft-capping, attention
    sinks): slow, but correct.
    """
    if _has_terms_of_its_own(model_config):
        return "eager"
    return "flash_attention_2" if use_gpu and is_flash_attn_2_available() else NAME


def check_shared(model_config: Any, where: str) -> None:
    """Raises UserError, naming the setting `where`, for models that do not support shared prefixes."""
    if _has_terms_of_its_own(model_config):
        kind = model_config.get_text_config().model_type
        raise UserError(
            f"{where} cannot train models of type {kind}, whose attention has soft-capped logits or sinks:"
            " use another model"
        )


def _has_terms_of_its_own(model_config: Any) -> bool:
    text = model_config.get_text_config()
    return bool(getattr(text, "attn_logit_softcapping", None)) or text.model_type == "gpt_oss"


def packed_attention(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling=None,
    dropout=0.0,
    cu_seq_lens_q=None,
    max_length_q=None,
    sliding_window=None,
    **_,
):
    """Causal attention within each document of one flattened row; the signature is transformers'
    `AttentionInterface`.

    query [1, heads, L, d], key and value [1, kv heads, L, d]; cu_seq_lens_q [documents + 1], the documents'
    boundaries. Returns ([1, L, heads, d], None).
    """
    if cu_seq_lens_q is None or query.shape[0] != 1:
        raise ValueError(
            f"{NAME} takes one flattened row and its cu_seq_lens_q, as TRL's padding-free collator makes them"
        )
    dropout = dropout if module.training else 0.0
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and not dropout:
        return _flash(query, key, value, cu_seq_lens_q, max_length_q, scaling, sliding_window), None
    return _document_by_document(query, key, value, cu_seq_lens_q, scaling, sliding_window, dropout), None


def _document_by_document(query, key, value, cu_seq_lens, scaling, sliding_window, dropout):
    lengths = cu_seq_lens.diff().tolist()
    documents = zip(*(x.float().split(lengths, dim=2) for x in (query, key, value)), strict=True)
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    for length, (q, k, v) in zip(lengths, documents, strict=True):
        band = None
        if sliding_window and length > sliding_window:
            band = (
                torch.ones(length, length, dtype=torch.bool, device=q.device).tril().triu(1 - sliding_window)
            )
        outputs.append(
            _without_autocast(
                q, k, v, band, dropout, is_causal=band is None, scale=scaling, enable_gqa=grouped
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).to(query.dtype)


def _without_autocast(*args, **options):
    """SDPA in the precision of its inputs: on a CPU, autocast would cast float32 to bfloat16.

    Its backward kernel for bfloat16 takes five times as long as that for float32 on 100 tokens, three times
    on 200. From 1 000 tokens on it may be a third faster; documents here are short.
    """
    with torch.autocast("cpu", enabled=False):
        return functional.scaled_dot_product_attention(*args, **options)


def _flash(query, key, value, cu_seq_lens, longest, scaling, sliding_window):
    """PyTorch's flash kernel for documents of different lengths, which exists on CUDA only."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    window = (sliding_window - 1 if sliding_window else -1, 0)
    grouped = q.shape[1] != k.shape[1]
    return varlen_attn(
        q,
        k,
        v,
        cu_seq_lens,
        cu_seq_lens,
        longest,
        longest,
        scale=scaling,
        window_size=window,
        enable_gqa=grouped,
    )[None]


def shared_attention(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling=None,
    dropout=0.0,
    shared=None,
    sliding_window=None,
    **_,
):
    """Causal attention within each sequence of a row without repeated prefixes; the signature is
    transformers' `AttentionInterface`.

    query [1, heads, L, d], key and value [1, kv heads, L, d]; shared, a `SharedRow`. Returns ([1, L, heads,
    d], None).
    """
    if shared is None or query.shape[0] != 1:
        raise ValueError(f"{SHARED} takes one flattened row and its `shared`")
    dropout = dropout if module.training else 0.0
    if query.is_cuda:
        return _padded(query, key, value, shared, scaling, sliding_window, dropout), None
    return _sequence_by_sequence(query, key, value, shared, scaling, sliding_window, dropout), None


def _sequence_by_sequence(query, key, value, shared, scaling, sliding_window, dropout):
    dtype, grouped = query.dtype, query.shape[1] != key.shape[1]
    if dtype != torch.float64:
        query, key, value = query.float(), key.float(), value.float()
    outputs = []
    for part, (q, path) in enumerate(zip(query.split(shared.own, dim=2), shared.paths, strict=True)):
        k, v = (x.index_select(2, path) for x in (key, value))
        mask = shared.mask(part, sliding_window)
        outputs.append(
            _without_autocast(
                q,
                k,
                v,
                mask,
                dropout,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=grouped,
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).to(dtype)


def _padded(query, key, value, shared, scaling, sliding_window, dropout):
    """All sequences in one call of SDPA.

    Gradients of one place in the row are summed in a fixed order. Of its query there is one, and zeros from
    padding, so any order will do. Of its key and value there are those of several sequences: on CUDA, the
    backward pass of indexing sorts them, and that of `index_select` adds them as they come.
    """
    copies, padded = query.shape[1] // key.shape[1], shared.padded(sliding_window, query.dtype)
    parts = len(shared.own)
    query, key, value = (x.squeeze(0) for x in (query, key, value))
    q = query.index_select(1, padded.own).unflatten(1, (parts, -1)).transpose(0, 1)
    k, v = (x[:, padded.whole].unflatten(1, (parts, -1)).transpose(0, 1) for x in (key, value))
    if copies > 1:  # no fast kernel for CUDA takes both a mask and grouped heads
        k, v = (x.repeat_interleave(copies, dim=1) for x in (k, v))
    out = functional.scaled_dot_product_attention(q, k, v, padded.bias, dropout, scale=scaling)
    return out.transpose(1, 2).flatten(0, 1).index_select(0, padded.real)[None]


@dataclass(frozen=True)
class Padded:
    """The sequences of a row as a batch, each padded at its end.

    own:   [sequences · most own] the place in the row of every token that a sequence adds
    whole: [sequences · longest] the place in the row of every token of a sequence
    real:  [L] the place of the row's tokens among `own`, of which the others are padding
    bias:  [sequences, 1, most own, longest] 0 if the added token sees the other token, else −∞
    """

    own: torch.Tensor
    whole: torch.Tensor
    real: torch.Tensor
    bias: torch.Tensor


class SharedRow:
    """The layout of sequences in a row without repeated prefixes.

    own:   tokens that each sequence adds to the row, one part after another; at least 1 each
    paths: [whole length] per sequence: the positions in the row of all its tokens, the added ones last
    """

    def __init__(self, own: list[int], paths: list[torch.Tensor]):
        self.own, self.paths = own, paths
        self._masks: dict[tuple[int, int | None], torch.Tensor | None] = {}
        self._padded: dict[tuple[int | None, torch.dtype], Padded] = {}

    def mask(self, part: int, window: int | None) -> torch.Tensor | None:
        """[own, whole]: tokens of the sequence that each added token sees; None if causal attention suffices.

        Cached, because every layer uses it.
        """
        n, whole = self.own[part], len(self.paths[part])
        window = window if window and window < whole else None
        if n == whole and window is None:
            return None
        if (part, window) not in self._masks:
            seen = torch.ones(n, whole, dtype=torch.bool, device=self.paths[part].device).tril(whole - n)
            self._masks[part, window] = seen.triu(whole - n + 1 - window) if window else seen
        return self._masks[part, window]

    def padded(self, window: int | None, dtype: torch.dtype) -> Padded:
        """The sequences as a batch, with a bias of `dtype`.

        Cached, because every layer uses it. A bias and no mask: of a mask, SDPA makes a bias for every layer,
        and keeps it for the backward pass.
        """
        if (window, dtype) not in self._padded:
            device, parts, tokens = self.paths[0].device, len(self.own), sum(self.own)
            own = torch.tensor(self.own, device=device)[:, None]
            whole = torch.tensor([len(path) for path in self.paths], device=device)[:, None]
            most, longest = max(self.own), max(len(path) for path in self.paths)
            slots, at = torch.arange(most, device=device), torch.arange(longest, device=device)
            # Padding has the places of the row in turn, since gradients of one place are added one by one.
            added = torch.arange(parts * most, device=device) % tokens
            real = (slots < own).flatten().nonzero()[:, 0]
            added[real] = torch.arange(tokens, device=device)
            places = (torch.arange(parts * longest, device=device) % tokens).view(parts, longest)
            places[at < whole] = torch.cat(self.paths)
            # In its sequence, the last token that each added token sees. Padding sees some token, too: the
            # softmax of nothing is no number.
            last = (slots + whole - own)[:, :, None].clamp(max=longest - 1)
            hidden = at > last
            if window:
                hidden |= at <= last - window
            # Rows begin at multiples of 16 numbers: of any other bias, PyTorch makes such a copy per layer.
            bias = torch.zeros(parts, 1, most, -(-longest // 16) * 16, dtype=dtype, device=device)
            bias = bias[..., :longest].masked_fill_(hidden[:, None], -torch.inf)
            self._padded[window, dtype] = Padded(added, places.flatten(), real, bias)
        return self._padded[window, dtype]


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
AttentionInterface.register(SHARED, shared_attention)
AttentionMaskInterface.register(SHARED, lambda *args, **kwargs: None)
