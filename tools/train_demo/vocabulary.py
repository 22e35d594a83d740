"""The tokenizer of the demo model: Llama 3's pipeline over a vocabulary of its own, and the chat template of 2B-4T."""

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BEGIN, END, END_OF_TURN = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
NUM_SPECIALS = 16  # +0 begin, +1 end, +9 end of turn, as in Llama 3; the rest is reserved
CHAT_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = message['role'] | capitalize + ': '+ message['content'] | trim + '<|eot_id|>' %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE with Llama 3's pipeline; the last NUM_SPECIALS ids are special."""
    base = vocab_size - NUM_SPECIALS
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = _pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=base,
        special_tokens=[],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != base:
        raise ValueError(f"the text gives only {tokenizer.get_vocab_size()} tokens, {base} are wanted")
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special_names()])
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BEGIN} $A",
                pair=f"{BEGIN} $A {BEGIN}:1 $B:1",
                special_tokens=[(BEGIN, special_id(tokenizer, BEGIN))],
            ),
        ]
    )
    return tokenizer


def special_names() -> list[str]:
    """Special tokens in id order."""
    named = {0: BEGIN, 1: END, 9: END_OF_TURN}
    reserved = iter(range(NUM_SPECIALS))
    return [named.get(i) or f"<|reserved_special_token_{next(reserved)}|>" for i in range(NUM_SPECIALS)]


def special_id(tokenizer: Tokenizer, name: str) -> int:
    """Id of a special token that must be there."""
    token_id: int | None = tokenizer.token_to_id(name)
    if token_id is None:
        raise ValueError(f"the tokenizer has no {name}")
    return token_id
