"""Text as tokens: byte pairs learnt from the corpus, training windows, and sequences held out for recording.

Tokens 0..255 are bytes, of which 0 ends a piece of text; each further token joins two. B sequences of N tokens,
V tokens in the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.errors import UserError
from moesim.traces.corpus import Corpus
from moesim.traces.torch_door import Tensor, torch

BYTES = 256
ROUND = 32
SAMPLE = 2_000_000
SPACES = b" \t\n\r"


@dataclass(frozen=True)
class Round:
    """Pairs joined at once: `right` [V] is the token that joins to its index (-1: none), `joined` [V] the result."""

    right: Tensor
    joined: Tensor


@dataclass(frozen=True)
class Text:
    """Each domain's tokens to train on and to hold out; `note` says what the domains are, `digest` names the text."""

    domains: tuple[str, ...]
    train: tuple[Tensor, ...]
    held_out: tuple[Tensor, ...]
    note: str
    digest: str

    def batch(self, generator: np.random.Generator, batch: int, length: int) -> Tensor:
        """Windows [B, N+1] of training text, domains with equal chances."""
        chosen = generator.integers(len(self.train), size=batch)
        starts = generator.random(batch)
        return torch.stack([_window(self.train[d], s, length + 1) for d, s in zip(chosen, starts, strict=True)]).long()

    def sequences(self, count: int, length: int) -> tuple[Tensor, list[int]]:
        """Held-out sequences [S, N+1], the domains in turn, and the domain of each."""
        domain = [index % len(self.domains) for index in range(count)]
        shares = [(index // len(self.domains) + 0.5) * len(self.domains) / count for index in range(count)]
        windows = [
            _window(self.held_out[where], min(share, 1.0), length + 1)
            for where, share in zip(domain, shares, strict=True)
        ]
        return torch.stack(windows).long(), domain


def tokenise(corpus: Corpus, vocabulary: int, length: int, device: torch.device) -> Text:
    """The corpus in tokens of its own byte pairs; raises UserError where a domain has less than one sequence."""
    train, held = zip(*([_bytes(part, device) for part in domain.split()] for domain in corpus.domains), strict=True)
    share = SAMPLE // len(train)
    rounds = learn(torch.cat([tokens[:share] for tokens in train]), vocabulary)
    text = Text(
        tuple(domain.name for domain in corpus.domains),
        tuple(encode(tokens, rounds).to(torch.int32) for tokens in train),
        tuple(encode(tokens, rounds).to(torch.int32) for tokens in held),
        "; ".join(f"{domain.name}: {domain.description}" for domain in corpus.domains),
        corpus.digest,
    )
    for name, *streams in zip(text.domains, text.train, text.held_out, strict=True):
        if min(stream.numel() for stream in streams) <= length + 1:
            raise UserError(f"domain {name}: too little text for sequences of {length} tokens")
    return text


def learn(tokens: Tensor, vocabulary: int) -> list[Round]:
    """Byte pairs for a vocabulary of that size: round by round the most frequent pairs, no token in two of a round.

    No pair joins a token that ends a word to one that begins with a space, none joins the end of a piece.
    """
    spaces = torch.zeros(vocabulary, dtype=torch.bool, device=tokens.device)
    spaces[list(SPACES)] = True
    words = ~spaces
    rounds, size = [], BYTES
    while size < vocabulary:
        left, right = tokens[:-1], tokens[1:]
        legal = (left != 0) & (right != 0) & ~(words[left] & spaces[right])
        counts = torch.bincount((left * size + right)[legal])
        codes = torch.nonzero(counts > 1).ravel()
        codes = codes[counts[codes].argsort(descending=True, stable=True)[: 8 * ROUND]]
        found = _apart(codes.tolist(), size, min(ROUND, vocabulary - size))
        if not found:
            break
        table = torch.full((2, vocabulary), -1, dtype=torch.int64, device=tokens.device)
        for number, (one, other) in enumerate(found, start=size):
            table[0, one], table[1, one] = other, number
            spaces[number], words[number] = spaces[one], words[one] | words[other]
        rounds.append(Round(table[0], table[1]))
        tokens = _join(tokens, rounds[-1])
        size += len(found)
    return rounds


def encode(tokens: Tensor, rounds: list[Round]) -> Tensor:
    """The tokens of bytes, joined in the order in which the pairs were learnt."""
    for pairs in rounds:
        tokens = _join(tokens, pairs)
    return tokens


def _apart(codes: list[int], size: int, most: int) -> list[tuple[int, int]]:
    used: set[int] = set()
    found: list[tuple[int, int]] = []
    for code in codes:
        pair = divmod(code, size)
        if not used & set(pair):
            found.append(pair)
            used |= set(pair)
    return found[:most]


def _join(tokens: Tensor, pairs: Round) -> Tensor:
    left = tokens[:-1]
    hit = pairs.right[left] == tokens[1:]
    # In a run of one token paired with itself, every other hit counts.
    index = torch.arange(hit.numel(), device=hit.device)
    before = torch.where(hit, -1, index).cummax(0).values
    hit &= (index - before) % 2 == 1
    joined = torch.cat([torch.where(hit, pairs.joined[left], left), tokens[-1:]])
    kept = torch.ones_like(joined, dtype=torch.bool)
    kept[1:] = ~hit
    return joined[kept]


def _bytes(pieces: list[bytes], device: torch.device) -> Tensor:
    text = np.frombuffer(b"".join(piece + b"\0" for piece in pieces), dtype=np.uint8)
    return torch.from_numpy(text.astype(np.int64)).to(device)


def _window(tokens: Tensor, share: float, length: int) -> Tensor:
    start = int(share * (tokens.numel() - length))
    return tokens[start : start + length]
