"""Where CLIP text encoders pool a prompt that has new tokens.

The pooled embedding is the hidden state of the end of the prompt. Configurations on the Hub from before transformers
4.31 have `eos_token_id: 2`. Encoders with such a configuration take the position of the highest token ID, which is the
end only as long as there are no new tokens: they have higher IDs (transformers pull request 24773).
"""

from __future__ import annotations

from typing import Any

LEGACY_EOS = 2


def pool_at_end(encoder: Any, tokenizer: Any) -> None:
    """Let a text encoder find the end of a prompt by its token. Prompts without new tokens are embedded as before.

    The configuration is changed as well, so that a published model pools at the same position in other tools.

    Args:
        encoder: of transformers. Those that do not pool, as T5, are not changed.
        tokenizer: of the encoder.
    """
    for module in encoder.modules():
        if getattr(module, "eos_token_id", None) == LEGACY_EOS:
            module.eos_token_id = encoder.config.eos_token_id = tokenizer.eos_token_id
