"""Towers of words and sound: stable numbers of words, sentences that are drawn, pretrained encoders."""

import json

import pytest
import torch

from tubelet.nn.towers import (
    AudioTower,
    PretrainedAudio,
    PretrainedText,
    TextTower,
    candidates,
    sentences,
    words_of,
)
from tubelet.types import TubeletError


def test_words_and_sentences():
    assert words_of("The red Square's edge, 2 times!") == ["the", "red", "square", "s", "edge", "2", "times"]
    assert sentences("it moves| a star |  | ...") == ["it moves", "a star"]
    assert sentences("") == []


def test_a_word_has_the_same_number_in_every_process_and_sentence():
    tower = TextTower(8, 0, words=1000, length=4)
    numbers = tower.numbers(["left right", "RIGHT, left", "", "a b c d e f"])
    assert numbers[0].tolist() == [449, 594, 0, 0]
    assert numbers[1].tolist() == [594, 449, 0, 0]
    assert numbers[2].tolist() == [0] * 4
    assert (numbers[3] > 0).all()


@pytest.mark.parametrize("depth", [0, 2])
def test_text_does_not_depend_on_the_rest_of_the_batch(depth):
    torch.manual_seed(0)
    tower = TextTower(32, depth, words=100)
    together = tower(["it goes left", "", "a much longer sentence than the others are"])
    assert together.isfinite().all()
    torch.testing.assert_close(tower(["it goes left"]), together[:1])
    assert not torch.allclose(together[0], together[1])


def test_the_order_of_words_counts_only_in_context():
    torch.manual_seed(0)
    told = ["left then right", "right then left"]
    bag, context = TextTower(32, 0)(told), TextTower(32, 1)(told)
    torch.testing.assert_close(bag[0], bag[1])
    assert not torch.allclose(context[0], context[1])


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: TextTower(words=1), r"learner\.words must be 2 or more, .*, not 1"),
        (lambda: TextTower(dim=200), r"learner\.text_dim must be in 4\.\.127 or a multiple of 64, not 200"),
        (lambda: TextTower(dim=0, depth=0), r"learner\.text_dim must .*, not 0"),
        (lambda: AudioTower(dim=200), r"learner\.audio_dim must .*, not 200"),
    ],
)
def test_towers_that_cannot_be_made_are_said_in_a_line(made, said):
    with pytest.raises(TubeletError, match=said):
        made()
    assert TextTower(dim=200, depth=0)(["words"]).shape == (1, 200)  # which has no heads


def test_candidates_are_drawn_from_the_key():
    captions, keys = ["one|two|three|four", "", "five"], torch.tensor([11, 12, 13])
    texts, present = candidates(captions, keys, 2)
    assert present.tolist() == [[True, True], [False, False], [True, False]]
    assert len(set(texts[:2])) == 2 and set(texts[:2]) <= {"one", "two", "three", "four"}
    assert texts[2:] == ["", "", "five", ""]
    assert candidates(captions[:1], keys[:1], 2)[0] == texts[:2]
    drawn = {candidates(captions[:1], torch.tensor([key]), 1)[0][0] for key in range(40)}
    assert drawn == {"one", "two", "three", "four"}


@pytest.mark.parametrize("rate", [4000, 16_000])
def test_audio_of_any_length(rate):
    torch.manual_seed(0)
    tower = AudioTower(32, 1, rate)
    waves = torch.randn(3, rate) * torch.tensor([[0.0], [0.1], [0.5]])
    encoded = tower(waves)
    assert encoded.shape == (3, 32)
    assert encoded.isfinite().all()
    assert tower(waves[:, : rate // 3]).shape == (3, 32)
    torch.testing.assert_close(tower(waves[1:2]), encoded[1:2], atol=1e-5, rtol=1e-4)


@pytest.fixture
def text_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "it", "goes", "left", "right"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(vocab={word: row for row, word in enumerate(words)}).save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    return str(tmp_path)


def test_a_pretrained_text_encoder_stays_as_it_is(text_model):
    tower = PretrainedText(text_model).train()
    encoded = tower(["it goes left", "", "right"])
    assert encoded.shape == (3, tower.dim) == (3, 16)
    assert not encoded.requires_grad
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    torch.testing.assert_close(tower(["right"]), encoded[2:], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(encoded[0], encoded[2])


@pytest.fixture
def audio_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=4000).save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8),
        conv_stride=(5, 4), conv_kernel=(10, 8), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    transformers.Wav2Vec2Model(config).save_pretrained(tmp_path)
    return str(tmp_path)


def test_a_pretrained_sound_encoder_stays_as_it_is(audio_model):
    tower = PretrainedAudio(audio_model, 4000).train()
    waves = torch.randn(2, 2000)
    encoded = tower(waves)
    assert encoded.shape == (2, tower.dim) == (2, 16)
    assert not encoded.requires_grad
    torch.testing.assert_close(tower(waves[1:]), encoded[1:], atol=1e-5, rtol=1e-4)
    with pytest.raises(TubeletError, match=r"was not trained on 16000 samples a second: set data\.audio_rate .* 4000"):
        PretrainedAudio(audio_model, 16_000)


def test_what_transformers_cannot_read_is_said_in_a_line(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    with pytest.raises(TubeletError, match="transformers cannot load") as told:
        PretrainedText(str(tmp_path))
    assert "\n" not in str(told.value)
