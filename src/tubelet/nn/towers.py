"""Towers for what comes with a video: words and sound, one vector each. Small ones to train, pretrained ones to use."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from tubelet import draws
from tubelet.nn.mel import FLOOR, log_mel
from tubelet.nn.memory import Frozen
from tubelet.nn.positions import Positions
from tubelet.nn.transformer import Block, run_blocks, start_weights
from tubelet.types import TubeletError

SEPARATOR = "|"
"""Stands between the sentences of a caption that has several."""


class Tower(nn.Module):
    """An encoder of what comes with a video. Where weights are sharded each is gathered by itself, as hooks call it."""

    dim: int
    """Of its vectors."""


def text_tower(model: str | None, dim: int, depth: int, words: int) -> TextTower | PretrainedText:
    """The text encoder of transformers called ``model``, or a small one to train."""
    return TextTower(dim, depth, words) if model is None else PretrainedText(model)


def audio_tower(model: str | None, dim: int, depth: int, rate: int) -> AudioTower | PretrainedAudio:
    """The sound encoder of transformers called ``model``, or a small one to train."""
    return AudioTower(dim, depth, rate) if model is None else PretrainedAudio(model, rate)


class TextTower(Tower):
    """Sentences to vectors. A word's number is its hash, so that there is no vocabulary to make or keep.

    Words that share a hash are one word to it. With ``depth`` 0 each word is looked up, goes through a linear map and
    a ReLU, and each value's largest counts, as in MIL-NCE (Miech et al. 2020, section 3.2); otherwise words are first
    put into their context by a transformer. A sentence without words is one empty word.

    Args:
        dim: width of words and vectors, D.
        depth: blocks of the transformer.
        words: rows of the table of words.
        length: how many words of a sentence are read.
    """

    def __init__(self, dim: int = 128, depth: int = 2, words: int = 4096, length: int = 24) -> None:
        super().__init__()
        if words < 2:
            raise TubeletError(f"learner.words must be 2 or more, as row 0 is of no word, not {words}")
        self.dim, self.length = dim, length
        self.embed = nn.Embedding(words, dim)
        nn.init.normal_(self.embed.weight, std=0.02 if depth else 1.0)
        self.place = Positions("flat", dim)
        self.blocks = _blocks("text", dim, depth)
        self.norm = nn.LayerNorm(dim, eps=1e-6) if depth else nn.Identity()
        self.into = nn.Linear(dim, dim)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """B sentences -> B D."""
        numbers = self.numbers(texts)  # B L
        tokens = self.embed(numbers)  # B L D
        if self.blocks:
            tokens = tokens + self.place((self.length, 1, 1), tokens.device)
            tokens = self.norm(run_blocks(self.blocks, tokens, checkpointing=False))
        empty = (numbers == 0) & (numbers != 0).any(dim=1, keepdim=True)  # B L
        return self.into(tokens).relu().masked_fill(empty[..., None], 0).amax(dim=1)  # B D

    def numbers(self, texts: Sequence[str]) -> Tensor:
        """The rows of the table that the words of each sentence have, filled up with 0: B L."""
        rows = self.embed.num_embeddings
        lines = [[_number(word, rows) for word in words_of(text)[: self.length]] for text in texts]
        padded = [line + [0] * (self.length - len(line)) for line in lines]
        return torch.tensor(padded, device=self.embed.weight.device).view(len(texts), self.length)


def words_of(text: str) -> list[str]:
    """Its words in lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())


@lru_cache(maxsize=1 << 16)
def _number(word: str, rows: int) -> int:
    return 1 + draws.key("word", word) % (rows - 1)


def sentences(caption: str) -> list[str]:
    """The sentences of a caption, which stand between `SEPARATOR`; none where it has no words."""
    return [part.strip() for part in caption.split(SEPARATOR) if words_of(part)]


def candidates(captions: Sequence[str], keys: Tensor, count: int) -> tuple[list[str], Tensor]:
    """As many sentences of each caption, drawn from its key; empty ones where it has fewer.

    Returns:
        B x count sentences, those of a caption next to each other, and where there is one: B count bool.
    """
    found = [sentences(caption) for caption in captions]
    chances = draws.uniform(keys, max(map(len, found), default=0), "sentences").tolist()
    drawn: list[str] = []
    for mine, chance in zip(found, chances, strict=True):
        order = sorted(range(len(mine)), key=chance.__getitem__)
        drawn += ([mine[place] for place in order] + [""] * count)[:count]
    present = torch.tensor([text != "" for text in drawn], device=keys.device)
    return drawn, present.view(len(captions), count)


class AudioTower(Tower):
    """Waveforms to vectors: convolutions over a log-mel spectrogram, then a transformer over time.

    Args:
        dim: width of tokens and vectors, D; a multiple of 4.
        depth: blocks of the transformer.
        rate: samples a second.
        bins: mel bands, a multiple of 8.
    """

    def __init__(self, dim: int = 128, depth: int = 2, rate: int = 16_000, bins: int = 40) -> None:
        super().__init__()
        self.dim, self.rate, self.bins = dim, rate, bins
        widths = [1, dim // 4, dim // 2, dim]
        self.stem = nn.ModuleList(
            nn.Conv2d(before, width, 3, stride=2, padding=1) for before, width in pairwise(widths)
        )
        self.bands = nn.Conv2d(dim, dim, (bins // 8, 1))
        self.place = Positions("flat", dim)
        self.blocks = _blocks("audio", dim, depth)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, waveform: Tensor) -> Tensor:
        """B S in [-1, 1] -> B D."""
        window, hop = round(0.025 * self.rate), round(0.010 * self.rate)
        mel = log_mel(waveform.float(), self.rate, self.bins, window, hop)  # B F T
        picture = ((mel - math.log(FLOOR)) / 10)[:, None]  # B 1 F T: silence is 0, what is loud about 1
        for conv in self.stem:
            picture = nn.functional.gelu(conv(picture))
        tokens = self.bands(picture)[:, :, 0].transpose(1, 2)  # B T/8 D
        tokens = tokens + self.place((tokens.shape[1], 1, 1), tokens.device)
        return self.norm(run_blocks(self.blocks, tokens, checkpointing=False)).mean(dim=1)  # B D


class PretrainedText(Tower):
    """A text encoder of `transformers`, frozen: the mean of the last layer's tokens.

    Args:
        model: a folder, or a name on its hub. Of an encoder with a decoder the encoder is taken.

    Raises:
        TubeletError: transformers is missing, or does not read it.
    """

    def __init__(self, model: str) -> None:
        super().__init__()
        self.tokenizer = _loaded(model, "AutoTokenizer")
        self.encoder, self.dim = _encoder(model)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """B sentences -> B D."""
        device = next(self.encoder.parameters()).device
        given = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(device)
        with torch.no_grad():
            tokens = self.encoder.network(**given).last_hidden_state  # B L D
        real = given["attention_mask"][..., None].to(tokens.dtype)  # B L 1
        return (tokens * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)  # B D


class PretrainedAudio(Tower):
    """A sound encoder of `transformers` (Wav2Vec 2.0, HuBERT, AST ...), frozen: the mean of the last layer's tokens.

    Args:
        model: a folder, or a name on its hub.
        rate: samples a second of what it is given.

    Raises:
        TubeletError: transformers is missing or does not read it, or it was trained at another rate.
    """

    def __init__(self, model: str, rate: int) -> None:
        super().__init__()
        self.extractor = _loaded(model, "AutoFeatureExtractor")
        if self.extractor.sampling_rate != rate:
            remedy = f"set data.audio_rate and learner.audio_rate to {self.extractor.sampling_rate}"
            raise TubeletError(f"{model} was not trained on {rate} samples a second: {remedy}")
        self.rate = rate
        self.encoder, self.dim = _encoder(model)

    def forward(self, waveform: Tensor) -> Tensor:
        """B S in [-1, 1] -> B D."""
        waves = list(waveform.float().cpu().numpy())
        given = self.extractor(waves, sampling_rate=self.rate, return_tensors="pt", padding=True)
        with torch.no_grad():
            tokens = self.encoder.network(**given.to(waveform.device)).last_hidden_state  # B T D
        return tokens.mean(dim=1)  # B D


def _blocks(kind: str, dim: int, depth: int) -> nn.ModuleList:
    """Of the tower of a kind, with a head for each 64 of the width."""
    heads = max(1, dim // 64)
    if dim < 4 or (depth and dim % heads):
        raise TubeletError(f"learner.{kind}_dim must be in 4..127 or a multiple of 64, not {dim}")
    blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
    return blocks.apply(start_weights)


def _encoder(model: str) -> tuple[Frozen, int]:
    """The network and the width of its tokens."""
    network = _loaded(model, "AutoModel", use_safetensors=True, dtype=torch.float32)
    width = network.config.hidden_size
    return Frozen(network.get_encoder() if network.config.is_encoder_decoder else network), width


def _loaded(model: str, kind: str, **options: Any) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise TubeletError(f"{model} needs transformers: pip install 'tubelet[hub]'") from error
    try:
        return getattr(transformers, kind).from_pretrained(model, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        why = str(error).strip().partition("\n")[0]
        raise TubeletError(f"transformers cannot load {model!r} as {kind}: {why}") from error
