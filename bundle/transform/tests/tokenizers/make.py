"""Makes the fixtures beside it with Hugging Face's own tokenizers (pip install tokenizers==0.23.3).

Small vocabularies trained on a text that is part of the source, and what the original makes of sample texts.
"""
import json, pathlib
from tokenizers import Tokenizer, AddedToken, Regex, models, normalizers, pre_tokenizers, trainers

here = pathlib.Path(__file__).parent
corpus = (here / "../../../../examples/gpt/sums.txt").read_text() + "Don't we'll I'M 123 4567 \n\n\tx  y   z\r\n" * 50 + "größer naïve 東京 अच्छा\n" * 20
samples = [
    "", " ", "  ", "\n", " \n x", "a", "seven and five make twelve.\n", "it's we'LL they've I'm", "  two  spaces   three", "tab\tand\nlines\n\n  end ",
    "123 4567 89.5, x=3;", "größer naïve", "東京 tower", "अच्छा है", "Ⅷ ½ x² ①", "e\u0301 combining", "<|end|>a<|end|>", "x<|end|><|end|>y<|e", "a" * 300,
    "!!??...\r\n\r\n--", "\u00a0nbsp\u2003em ", "🙂👍🏽 emoji", "under_score snake_case __init__", "\u200bzero", "'s 'S 'd 'D", "A<|ending|>B",
]
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def make(name, pre, normalizer=None, ignore_merges=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre
    if normalizer:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
                                  special_tokens=[AddedToken("<|end|>", special=True), AddedToken("<|ending|>", special=True)])
    tokenizer.train_from_iterator([corpus], trainer)
    tokenizer.save(str(here / f"{name}.json"), pretty=False)
    texts = [text for text in samples if not normalizer or all(ord(c) < 0x300 for c in text)]
    encoded = [{"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids} for text in texts]
    (here / f"{name}.expected").write_text("".join(json.dumps(one) + "\n" for one in encoded))


make("gpt2", pre_tokenizers.ByteLevel(add_prefix_space=False))
make("prefix-space", pre_tokenizers.ByteLevel(add_prefix_space=True))
make("llama3", pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]), ignore_merges=True)
make("nfc", pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]), normalizers.NFC())
