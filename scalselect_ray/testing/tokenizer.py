"""A tokenizer that needs no training."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def byte_tokenizer(special: list[str], template: str, **named: str) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes and `special` tokens: it reads any text.

    The special tokens have the ids from 0 on; the first is for unknown tokens and padding, the second ends a text.
    `template` is the chat template in Jinja; `named` goes to the tokenizer as it is (`bos_token="..."`).
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=special[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=special[0], pad_token=special[0], eos_token=special[1], **named
    )
    fast.chat_template = template
    return fast
