"""Texts to token ids, by the rules of a checkpoint's training.

| | cleaning | ids of a text | padding |
|---|---|---|---|
| CLIP | the vocabulary's own | start, pieces, end | right, to context_length |
| SigLIP | lower case, no punctuation | pieces, end | right, with the end |
| SigLIP 2 | lower case | pieces, end | right |

Truncation drops the last pieces of a text, never its end. There is no attention mask: the models attend to the padding.
"""

import html
import re
import shutil
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Clean = Literal["none", "lower", "canonicalize", "whitespace"]

FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model", "vocab.txt")
"""Files of which one marks a folder with a tokenizer."""

_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", "config.json")


@dataclass(frozen=True, kw_only=True)
class TokenizerRules:
    """Rules that a checkpoint's format states for its tokenizer."""

    frame: Literal["clip", "siglip", "own"]
    """Tokens around the pieces: start and end (CLIP); the end (SigLIP); or those of the tokenizer itself."""
    clean: Clean | None = None
    """Cleaning of each text. Default: none for CLIP; for SigLIP as in the table above, by the vocabulary."""
    html: bool = False
    """Resolve `&amp;` and the like first, and collapse whitespace (open_clip)."""
    drop_underscore: bool = False
    """Remove an underscore with the punctuation (SigLIP in transformers) instead of replacing it by a space (big_vision)."""
    pad_id: int | None = None
    """Id of the padding token; default that of the tokenizer."""
    trim: bool = False
    """Pad to the longest text of a call instead of context_length, for towers that do not see padding."""
    strip_sep_token: bool = False
    """Replace a separator by 0 (CLIPA's BERT vocabulary)."""

    def __post_init__(self):
        if self.clean is not None and self.clean not in get_args(Clean):
            raise ValueError(f"a tokenizer's clean is {self.clean!r}, expected one of {', '.join(get_args(Clean))}")


class TextTokenizer:
    """Texts to ids of one length. `from_pretrained` and `from_sentencepiece` make one.

    Args:
        pieces: ids of each text of a list, without start, end and padding.
        context_length: ids of every row.
        start: ids before the pieces.
        end: ids after them, kept when a text is truncated.
        pad_id: id that pads a row.
        clean: function that cleans each text.
        trim: pad to the longest text of a call instead of context_length.
    """

    def __init__(
        self,
        pieces: Callable[[list[str]], list[list[int]]],
        *,
        context_length: int,
        start: Sequence[int] = (),
        end: Sequence[int] = (),
        pad_id: int,
        clean: Callable[[str], str] = str,
        trim: bool = False,
    ):
        if context_length < len(start) + len(end):
            raise ValueError(f"context_length is {context_length}: expected room for at least a text's start and end")
        self.context_length, self.pad_id, self.trim = context_length, pad_id, trim
        self.start, self.end = list(start), list(end)
        self._pieces, self._clean = pieces, clean
        self._files: dict[str, Path] = {}

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Ids (B, context_length) int64 of one text or several; with `trim` as many as the longest has.

        Raises:
            ValueError: an argument other than texts, or no text.
        """
        given = [texts] if isinstance(texts, str) else texts
        if not isinstance(given, list | tuple) or not given or not all(isinstance(text, str) for text in given):
            raise ValueError(f"expected a text or a list of texts, got {_brief(texts)}")
        rows = []
        for pieces in self._pieces([self._clean(text) for text in given]):
            kept = pieces[: self.context_length - len(self.start) - len(self.end)]
            rows.append([*self.start, *kept, *self.end])
        length = max(1, *map(len, rows)) if self.trim else self.context_length
        return torch.tensor([row + [self.pad_id] * (length - len(row)) for row in rows], dtype=torch.int64)

    @classmethod
    def from_sentencepiece(
        cls, model_file: str | Path, *, context_length: int, rules: TokenizerRules = TokenizerRules(frame="siglip")
    ) -> "TextTokenizer":
        """SigLIP's tokenizer on a sentencepiece model, as big_vision uses it.

        Args:
            model_file: c4_en or mc4 (SigLIP, lower case without punctuation, padded with the end), or Gemma's (SigLIP 2,
                lower case, padded with 0). Gemma's is recognized by its piece for the beginning of a text, which T5's lack.
            context_length: ids of every row, 64 in most models.
            rules: a cleaning other than the vocabulary's.

        Raises:
            ValueError: not a sentencepiece model.
        """
        from sentencepiece import SentencePieceProcessor

        if not Path(model_file).is_file():
            raise ValueError(f"there is no file {model_file}: expected a sentencepiece model")
        try:
            model = SentencePieceProcessor(model_file=str(model_file))
        except (RuntimeError, OSError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"{model_file} is not a sentencepiece model ({reason})") from None
        gemma = model.bos_id() >= 0
        made = cls(
            model.encode,  # type: ignore[attr-defined]
            context_length=context_length,
            end=[model.eos_id()],
            pad_id=model.pad_id() if gemma else model.eos_id(),
            clean=_cleaner("lower" if gemma else "canonicalize", rules),
        )
        made._files = {"spiece.model": Path(model_file)}
        return made

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        context_length: int,
        rules: TokenizerRules,
        pad_id: int = 0,
        revision: str | None = None,
    ) -> "TextTokenizer":
        """The tokenizer of a folder or hub id. No code of the checkpoint runs.

        Args:
            source: folder, hub id, or a sentencepiece `.model` file for a SigLIP.
            context_length: ids of every row.
            rules: rules of its checkpoint.
            pad_id: for a tokenizer without a padding token.
            revision: branch, tag or commit of a hub id.

        Raises:
            ValueError: nothing at `source`, no tokenizer in it, or one that the rules do not fit.
        """
        folder = _local(source, revision)
        if folder.is_file() or (rules.frame == "siglip" and (folder / "spiece.model").is_file()):
            if rules.frame == "clip":
                raise ValueError(f"{source} is a file, and CLIP's tokenizer is several: pass their folder, or a hub id")
            file = folder if folder.is_file() else folder / "spiece.model"
            return cls.from_sentencepiece(file, context_length=context_length, rules=rules)
        theirs = _transformers(folder, rules)
        start, end, clean = _frame(theirs, rules, str(source))
        if rules.pad_id is not None:
            pad_id = rules.pad_id
        elif theirs.pad_token_id is not None:
            pad_id = theirs.pad_token_id
        made = cls(
            partial(_encoded, theirs),
            context_length=context_length,
            start=start,
            end=end,
            pad_id=pad_id,
            clean=_cleaner(clean, rules),
            trim=rules.trim,
        )
        names = [name for name in (*FILES, *_BESIDE) if name != "config.json"]
        made._files = {name: folder / name for name in names if (folder / name).is_file()}
        return made

    def save_pretrained(self, folder: str | Path) -> None:
        """Copy the files of this tokenizer into an existing folder.

        Raises:
            ValueError: the tokenizer was made from a function.
        """
        if not self._files:
            raise ValueError("this tokenizer was made from a function, not from files: there is nothing to save")
        for name, file in self._files.items():
            shutil.copyfile(file, Path(folder) / name)


def canonicalize(text: str) -> str:
    """Lower case, underscores to spaces, no punctuation, single spaces.

    As `_canonicalize_text` of big_vision (evaluators/proj/image_text/prompt_engineering.py).
    """
    text = text.replace("_", " ").translate(str.maketrans("", "", string.punctuation)).lower()
    return " ".join(text.split())


_CLEAN: dict[Clean, Callable[[str], str]] = {
    "none": str,
    "lower": str.lower,
    "canonicalize": canonicalize,
    "whitespace": lambda text: " ".join(text.split()),
}


def _cleaned(text: str, *, kind: Clean, rules: TokenizerRules) -> str:
    if rules.html:
        text = " ".join(html.unescape(html.unescape(text)).split())
    if rules.drop_underscore and kind == "canonicalize":
        text = text.replace("_", "")
    return _CLEAN[kind](text)


def _cleaner(usual: Clean, rules: TokenizerRules) -> Callable[[str], str]:
    return partial(_cleaned, kind=rules.clean or usual, rules=rules)


def _encoded(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Pieces without special tokens, by a tokenizer of transformers."""
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def _local(source: str | Path, revision: str | None) -> Path:
    """The folder or file with the tokenizer."""
    path = Path(source).expanduser()
    if not path.exists():
        if isinstance(source, Path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.startswith("."):
            raise ValueError(f"there is no tokenizer at {source}: expected a folder, a hub id or a sentencepiece file")
        from huggingface_hub import snapshot_download

        try:
            path = Path(snapshot_download(source, revision=revision, allow_patterns=[*FILES, *_BESIDE]))
        except Exception as error:  # the hub client raises many kinds: offline, unknown, gated
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f"there is no folder {source}, and the hub did not give its tokenizer ({type(error).__name__}: {reason})"
            ) from error
    if path.is_file() and path.suffix == ".model":
        return path
    if path.is_file() or not any((path / name).is_file() for name in FILES):
        raise ValueError(
            f"{source} holds no tokenizer (none of {', '.join(FILES)}): pass tokenizer=..., a folder or hub id that has "
            "one, or a sentencepiece .model file; or pass ids"
        )
    return path


def _transformers(folder: Path, rules: TokenizerRules) -> Any:
    from transformers import AutoTokenizer, CLIPTokenizer

    plain = rules.frame == "clip" and not (folder / "tokenizer_config.json").is_file()
    try:
        return (CLIPTokenizer if plain else AutoTokenizer).from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"transformers cannot make the tokenizer of {folder} ({type(error).__name__}: {reason})"
        ) from error


def _frame(theirs: Any, rules: TokenizerRules, source: str) -> tuple[list[int], list[int], Clean]:
    """(start, end, default cleaning)"""
    bos, eos = theirs.bos_token_id, theirs.eos_token_id
    if rules.frame == "own":
        around = theirs("")["input_ids"]
        if rules.strip_sep_token:
            around = [0 if token == theirs.sep_token_id else token for token in around]
        return around[:-1], around[-1:], "none"
    if eos is None or (rules.frame == "clip" and bos is None):
        raise ValueError(f"the tokenizer of {source} has no token for a text's {'start or ' * (bos is None)}end")
    if rules.frame == "clip":
        return [bos], [eos], "none"
    return [], [eos], "canonicalize" if bos is None else "lower"


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__} {text[:60]}..."
