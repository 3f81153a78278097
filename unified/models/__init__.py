"""The model: one causal LM over text and image codes, and everything that it has to know itself.

configuration         UnifiedConfig
vocabulary            codes <-> ids; the only offset arithmetic
messages              what a conversation is
processing            UnifiedProcessor: chat template, chats -> ids, ids -> text and images
sequence_layout       what input_ids say: images, scales, RoPE positions, attention mask
image_embedding       input states of image positions
attention             attention under a block mask, fast on CPUs
format_version        what earlier versions stored, in today's words
losses                cross-entropy over text and codes without holding the logits; weights per modality and scale
modeling              UnifiedModel, UnifiedForCausalLM
sampling              temperature, top-k, top-p, guidance
generation            generate(): text token by token, images scale by scale
position_gated_lora   LoRA that acts on image tokens only, or after an image
trainable_token_rows  rows of embedding and output matrix that learn while the others are frozen
remote_code           the way from a checkpoint to its classes, for programs that do not import this package
"""

__all__ = [
    "attention",
    "configuration",
    "format_version",
    "generation",
    "image_embedding",
    "losses",
    "messages",
    "modeling",
    "position_gated_lora",
    "processing",
    "remote_code",
    "sampling",
    "sequence_layout",
    "trainable_token_rows",
    "vocabulary",
]
