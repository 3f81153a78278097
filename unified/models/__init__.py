"""The model: one causal LM over text and image codes, and everything that it has to know itself.

configuration         UnifiedConfig
backbones             what causal LMs differ in: kinds of layers, masks, caches, balance of experts
vocabulary            codes <-> ids; the only offset arithmetic
messages              conversations: roles, text and image parts
tools                 tools and tool calls, in the form that templates read
chat_templates        a chat template as text around contents
chat_tokenization     chats -> ids of text, as the tokenizer's own
chat_fingerprint      whether a processor encodes chats as in training
template_probe        what is wrong with a chat template
template_mending      a chat template whose prompts are those of training
image_processing      pictures in any form -> pixel values; pictures inside messages
chat_inputs           conversations and texts -> inputs, with transformers' arguments
padding               rows of ids as tensors: padding and truncation
processing            UnifiedProcessor: chat template, chats -> ids, ids -> text and images
sequence_layout       images, scales, RoPE positions and attention mask, derived from input_ids
engine_files          checkpoints whose files name parts as training has them: zero_to_fp32
frozen_tokenizer      the image tokenizer inside a model: buffers, float32
image_embedding       input states of image positions
attention             attention with a block mask, fast on CPUs
format_version        translates values that earlier versions stored
losses                cross-entropy over text and codes without holding the logits; weights per modality and scale
modeling              UnifiedModel, UnifiedForCausalLM
pretrained            what the two share
compiled_scales       torch.compile of a scale's step
row_cache             KV cache of rows of different lengths
image_sampling        ImageSampling: settings of image codes
sampling              temperature, top-k, top-p, classifier-free guidance
rows_apart            generation row by row, for recurrent backbones
generated_outputs     ids that were generated -> text, images, parts
generation            generate(): HF's, with images
generation_arguments  its arguments: what is derived from several, and what is refused
interleaved_decoding  one call of it: HF's decoding of text, and the images in between
text_decoding         processors, criteria and streamer of one stretch of text
image_generation      images in cached decoding, scale by scale or code by code
adapter_kinds         the kinds of PEFT that train here
position_gated_lora   LoRA that is applied to image tokens only, or after an image
trainable_token_rows  trainable rows of embedding and output matrix, with the other rows frozen
new_rows              new rows of the vocabulary as parameters of their own; files with whole matrices
auto_classes          HF's Auto classes, and what its pipelines support
remote_code           trust_remote_code module of a checkpoint, for programs that do not import this package
"""

__all__ = [
    "adapter_kinds",
    "attention",
    "auto_classes",
    "backbones",
    "chat_fingerprint",
    "chat_inputs",
    "chat_templates",
    "chat_tokenization",
    "configuration",
    "engine_files",
    "format_version",
    "frozen_tokenizer",
    "generated_outputs",
    "generation",
    "generation_arguments",
    "image_embedding",
    "image_generation",
    "image_processing",
    "image_sampling",
    "interleaved_decoding",
    "losses",
    "messages",
    "modeling",
    "new_rows",
    "padding",
    "position_gated_lora",
    "pretrained",
    "processing",
    "remote_code",
    "rows_apart",
    "compiled_scales",
    "row_cache",
    "sampling",
    "sequence_layout",
    "template_mending",
    "template_probe",
    "text_decoding",
    "tools",
    "trainable_token_rows",
    "vocabulary",
]
