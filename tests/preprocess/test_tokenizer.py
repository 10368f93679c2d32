"""Tokenizers of text towers, against those of transformers and sentencepiece."""

import io
import json
import pickle
import string

import pytest
import sentencepiece
from support.golden import golden_case

from vlm_vision.pair import load_text
from vlm_vision.preprocess.tokenizer import TextTokenizer, TokenizerRules

TEXTS = ["A photo of a cat!", "two DOGS, and\ta  cat.", "", "x-y_z it's", "a cat " * 20]


def sentencepiece_model(path, **options):
    """A tiny sentencepiece model of lower-case English."""
    sentences = ["a photo of a cat", "two dogs and a cat", "the quick brown fox jumps over the lazy dog"] * 20
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        minloglevel=2,
        **options,
    )
    path.write_bytes(model.getvalue())
    return path


def test_sentencepiece_of_siglip_drops_punctuation_and_pads_with_the_end(tmp_path):
    file = sentencepiece_model(tmp_path / "spiece.model", unk_id=2, bos_id=-1)
    ids = TextTokenizer.from_sentencepiece(file, context_length=12)(TEXTS)
    plain = ["a photo of a cat", "two dogs and a cat", "", "xy z its", "a cat " * 20]
    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    for row, text in zip(ids.tolist(), plain, strict=True):
        assert row == (model.encode(text)[:11] + [1] * 12)[:12] and row[-1] == 1
    own = TextTokenizer.from_pretrained(
        tmp_path, context_length=12, rules=TokenizerRules(frame="siglip", drop_underscore=True)
    )
    assert own("x_y").tolist() == own("xy").tolist()  # transformers drops underscores
    pytest.importorskip("google.protobuf")  # of SiglipTokenizer
    from transformers import SiglipTokenizer

    theirs = SiglipTokenizer(str(file))(TEXTS, padding="max_length", truncation=True, max_length=12)["input_ids"]
    assert own(TEXTS).tolist() == theirs


def test_sentencepiece_of_siglip2_lowers_keeps_punctuation_and_pads_with_zero(tmp_path):
    file = sentencepiece_model(tmp_path / "gemma.model", unk_id=3, bos_id=2)
    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    tokenizer = TextTokenizer.from_sentencepiece(file, context_length=12)
    assert tokenizer("A Cat").tolist()[0] == (model.encode("a cat") + [1] + [0] * 12)[:12]
    assert tokenizer("a, cat").tolist() != tokenizer("a cat").tolist()
    assert tokenizer(TEXTS)[-1, -1] == 1
    again = pickle.loads(pickle.dumps(tokenizer))  # as workers of a DataLoader get it
    assert again(TEXTS).equal(tokenizer(TEXTS))


def test_a_gemma_tokenizer_of_siglip2_is_lowered_ended_and_padded_right(tmp_path):
    from transformers import Siglip2Tokenizer

    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁"]
    Siglip2Tokenizer({name: i for i, name in enumerate([*specials, *"catdogs,"])}, []).save_pretrained(tmp_path)
    made = TextTokenizer.from_pretrained(tmp_path, context_length=8, rules=TokenizerRules(frame="siglip"))
    assert made("A Cat").tolist() == [[7, 5, 6, 7, 8, 1, 0, 0]]
    assert made("cat" * 9)[0, -1] == 1


def test_byte_pairs_of_clip_equal_transformers(tmp_path):
    from transformers import CLIPTokenizer

    letters = [c for c in string.ascii_lowercase + string.punctuation]
    pieces = [*letters, *(c + "</w>" for c in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    golden = theirs(TEXTS, padding="max_length", truncation=True, max_length=16)["input_ids"]
    made = TextTokenizer.from_pretrained(tmp_path, context_length=16, rules=TokenizerRules(frame="clip"))
    assert made(TEXTS).tolist() == golden
    assert made("cat cat")[0, 1] == made("cat cat")[0, 2]
    end = pieces.index("<|endoftext|>")
    assert made(TEXTS)[-1, -1] == end  # truncated
    of_open_clip = TokenizerRules(frame="clip", clean="lower", html=True, pad_id=0)
    zero = TextTokenizer.from_pretrained(tmp_path, context_length=8, rules=of_open_clip)
    assert zero("cat").tolist() == [[end - 1, pieces.index("cat</w>"), end, 0, 0, 0, 0, 0]]
    assert zero("a&amp;a").tolist() == zero("a&a").tolist()
    for wrong in ([], None, ["a", 3]):
        with pytest.raises(ValueError, match="expected a text"):
            made(wrong)


def test_a_tokenizer_comes_with_the_tower_or_is_asked_for(tmp_path):
    source = golden_case("bv_siglip") / "siglip.npz"
    text = load_text(golden_case("hf_siglip"))
    with pytest.raises(ValueError, match="holds no tokenizer .* pass tokenizer="):
        text.encode("a cat")
    with pytest.raises(ValueError, match="pass tokenizer="):
        load_text(source).encode("a cat")
    file = sentencepiece_model(tmp_path / "spiece.model", unk_id=2, bos_id=-1)
    for given in (file, tmp_path, TextTokenizer.from_sentencepiece(file, context_length=12)):
        assert load_text(source, tokenizer=given).encode(["a cat", "two dogs"]).shape == (2, 64)
    with pytest.raises(ValueError, match="no tokenizer at"):
        load_text(source, tokenizer=tmp_path / "absent")
